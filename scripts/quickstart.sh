#!/usr/bin/env bash
# The whole pipeline on the bundled demo: prepare, fine-tune, mine, train a reranker, evaluate together.
# Usage: bash scripts/quickstart.sh [NAME]     everything lands in outputs/NAME-* (default: quickstart-<time>)
# With the NAME of one that was killed it goes on where that one was.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
if [[ "${1:-}" = -* || $# -gt 1 ]]; then  # no run of that name
  sed -n '2,4s/^# //p' scripts/quickstart.sh >&2
  if [[ "$*" = --help || "$*" = -h ]]; then exit 0; fi
  exit 2
fi
source scripts/launch.sh
name="outputs/${1:-quickstart-$(date +%Y%m%d-%H%M%S)}"
bash scripts/setup.sh
step() { echo -e "\n== $* ==" >&2; }

# train FOLDER FINETUNE.sh RECIPE --flag ...: from the folder's last checkpoint where it has one; nothing where all is done
train() {
  local folder="$1"
  shift
  if [ -e "$folder/run.json" ]; then
    echo "$folder is complete" >&2
    return
  fi
  if [ -n "$(to_resume "$folder")" ]; then set -- "$@" --resume_from_checkpoint last; fi
  bash "$@" --output_dir "$folder"
}

step prepare rows
.venv/bin/python scripts/prepare_data.py --source beir=demo --negatives bm25 --output_dir "$name-rows"
step fine-tune the encoder
train "$name-encoder" v1.1/scripts/finetune.sh v1.1/recipes/demo.yaml --train_data "$name-rows"/train-*.jsonl.gz
step mine hard negatives with it
.venv/bin/python scripts/mine_negatives.py --train_data "$name-rows"/train-*.jsonl.gz \
  --first_stage "hybrid:$name-encoder" --num_negatives 4 --output_dir "$name-mined"
step train a reranker on them
train "$name-reranker" reranker/scripts/finetune.sh reranker/recipes/demo.yaml --train_data "$name-mined"/part-*.jsonl.gz
step evaluate first stages and reranker together
.venv/bin/python evaluate.py --first_stage bm25 dense:demo "dense:$name-encoder" "hybrid:$name-encoder" \
  --reranker none "$name-reranker" --interpolate auto --depth 20
echo -e "\nlook:  .venv/bin/streamlit run leaderboard.py\nserve: .venv/bin/python scripts/serve.py"
