# Sourced by the finetune.sh scripts: set up, choose the recipe, start one process or torchrun.
# launch TRAIN.py DEFAULT_RECIPE [RECIPE.yaml] [--flag value ...]
#   NPROC_PER_NODE  processes on this machine (default: one a visible GPU, else 1)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several machines (defaults: 1, 0, 127.0.0.1, 29500)

launch() {
  local root train="$1" recipe="$2"
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  shift 2
  if [ "${NNODES:-1}" != 1 ] && [[ " $* " != *" --output_dir"* ]]; then
    echo "error: NNODES=$NNODES: found no --output_dir; expected the same folder, given on every machine" >&2
    return 2
  fi
  if [ $# -gt 0 ] && [[ "$1" != -* ]]; then recipe="$1"; shift; fi
  bash "$root/scripts/setup.sh"
  local gpus processes nodes="${NNODES:-1}"
  if [ "${CUDA_VISIBLE_DEVICES+set}" = set ]; then
    gpus="$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^[0-9]+$|^(GPU|MIG)-')" || gpus=0
  else
    gpus="$(nvidia-smi --list-gpus 2>/dev/null | wc -l)" || gpus=0
  fi
  processes="${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
  KOIR_STARTED="$(date +%Y%m%d-%H%M%S)"
  export KOIR_STARTED
  if [ "$processes" = 1 ] && [ "$nodes" = 1 ]; then
    "$root/.venv/bin/python" "$train" "$recipe" "$@"
  else
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}"
    "$root/.venv/bin/torchrun" --nproc_per_node "$processes" --nnodes "$nodes" --node_rank "${NODE_RANK:-0}" \
      --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" "$train" "$recipe" "$@"
  fi
}
