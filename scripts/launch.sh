# Sourced by the finetune.sh scripts: set up, choose the recipe, start one process or, by scripts/launch.py, torchrun.
# launch TRAIN.py DEFAULT_RECIPE [RECIPE.yaml] [--auto_retry] [--flag value ...]
#   --auto_retry    when memory runs out, go on from the last checkpoint with half the token budget, by itself
#   NPROC_PER_NODE  processes on this machine (default: one a visible GPU, else 1)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several machines (defaults: 1, 0, 127.0.0.1, 29500; of one: a free port)

launch() {
  local root train="$1" recipe="$2" word words=() retry="" nodes="${NNODES:-1}"
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  shift 2
  if [ $# -gt 0 ] && [[ "$1" != -* ]]; then recipe="$1"; shift; fi
  if [ ! -e "$recipe" ] && [ -f "$root/$recipe" ]; then
    recipe="$root/$recipe"
    echo "recipe:  $recipe" >&2
  fi
  if [ "$nodes" != 1 ] && [[ " $* " != *" --output"[_-]dir* ]] && ! grep -q '^output_dir:' "$recipe"; then
    echo "error: NNODES=$nodes: found no --output_dir; expected the same folder, given on every machine" >&2
    return 2
  fi
  for word in "$@"; do
    if [[ "$word" = --auto[_-]retry ]]; then retry=yes; else words+=("$word"); fi
  done
  if [ -n "$retry" ] && [ "$nodes" != 1 ]; then
    echo "error: --auto_retry: found NNODES=$nodes; expected one machine" >&2
    return 2
  fi
  bash "$root/scripts/setup.sh"
  local gpus processes command=()
  if [ "${CUDA_VISIBLE_DEVICES+set}" = set ]; then
    gpus="$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES")"
  else
    gpus="$(nvidia-smi --list-gpus 2>/dev/null)" || gpus=""
  fi
  if grep -q MIG <<<"$gpus"; then
    gpus=1  # of several parts CUDA shows a process the first
  else
    gpus="$(grep -cE '^([0-9]+$|GPU[- ])' <<<"$gpus")" || gpus=0
  fi
  processes="${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
  if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NPROC_PER_NODE: found $processes; expected a number of processes, at least 1" >&2
    return 2
  fi
  if [ "$processes" = 1 ] && [ "$nodes" = 1 ] && [ "$gpus" -gt 1 ]; then
    export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
    export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES%%,*}"  # all that one process can use
  fi
  keep_memory
  KOIR_STARTED="$(date +%Y%m%d-%H%M%S)"
  export KOIR_STARTED
  if [ "$processes" = 1 ] && [ "$nodes" = 1 ]; then
    command=("$root/.venv/bin/python")
  else
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}"
    command=("$root/.venv/bin/python" "$root/scripts/launch.py" --nproc_per_node "$processes" --nnodes "$nodes"
      --node_rank "${NODE_RANK:-0}")
    if [ "$nodes" = 1 ] && [ -z "${MASTER_PORT:-}" ]; then
      command+=(--rdzv_backend c10d --rdzv_endpoint localhost:0)
    else
      command+=(--master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
    fi
  fi
  run_to_the_end "$retry" "${command[@]}" "$train" "$recipe" ${words[@]+"${words[@]}"}
}

# keep_memory: one step's memory is kept for the next, in large pages; a step on a CPU is a tenth faster for it.
keep_memory() {
  export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=$((1 << 40)):\
glibc.malloc.mmap_threshold=$((1 << 40)):glibc.malloc.top_pad=$((1 << 26))}"
}

# run_to_the_end RETRY COMMAND ...: passes SIGTERM on, says when the kernel killed it, and goes on when told to.
# Ctrl-C reaches the command too: its end is waited for, then this shell ends by SIGINT, as scripts that call it expect.
run_to_the_end() {
  local retry="$1" child status flags=() less="a smaller --chunk_tokens, --cache_keep_tokens 0" interrupted=""
  shift
  KOIR_FOLDER="$(mktemp 2>/dev/null || true)"  # the training writes its run folder there
  export KOIR_FOLDER
  if [ -n "$retry" ]; then
    KOIR_RETRY="$(mktemp)"
    export KOIR_RETRY
  fi
  trap 'interrupted=yes' INT
  while true; do
    status=0
    env --default-signal=INT "$@" ${flags[@]+"${flags[@]}"} &  # a child in the background would ignore Ctrl-C
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null || true' TERM
    wait "$child" || status=$?
    while [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; do status=0; wait "$child" || status=$?; done
    trap - TERM
    if [ "$status" = 0 ] || [ -n "$interrupted" ] || [ -z "$retry" ] || [ ! -s "$KOIR_RETRY" ]; then break; fi
    mapfile -t flags < "$KOIR_RETRY"
    : > "$KOIR_RETRY"
    echo "retry: ${flags[*]}" >&2
  done
  if [ -n "$retry" ]; then rm -f "$KOIR_RETRY"; fi
  if [[ " $* " = *"v1/train.py "* ]]; then less="a smaller --per_device_train_batch_size, or v1.1"; fi
  if [ "$status" = 137 ]; then
    echo "error: the process was killed, most likely by the kernel because memory ran out; expected less to hold:" \
      "$less$(to_resume "$(cat "$KOIR_FOLDER" 2>/dev/null)")" >&2
  fi
  rm -f "$KOIR_FOLDER"
  trap - INT
  if [ -n "$interrupted" ] && [ "$status" != 0 ]; then kill -INT "$BASHPID"; fi
  return "$status"
}

# to_resume FOLDER: the flags to go on with, where the run folder holds a checkpoint that was written to its end.
to_resume() {
  local checkpoint folder="$1"
  if [[ "$1" = *[[:space:]]* ]]; then folder="'$1'"; fi
  for checkpoint in "$1"/checkpoints/checkpoint-*; do
    if [ "$(tail -n 1 "$checkpoint/trainer_state.json" 2>/dev/null)" = "}" ]; then
      echo "; the last checkpoint is good: --output_dir $folder --resume_from_checkpoint last"
      return
    fi
  done
}
