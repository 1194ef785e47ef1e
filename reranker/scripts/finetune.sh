#!/usr/bin/env bash
# Fine-tune a reranker. Usage: bash reranker/scripts/finetune.sh [RECIPE.yaml] [--flag value ...]
# No arguments: the bundled demo. --help lists the flags; scripts/launch.sh says how several GPUs and machines are used.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$here/../scripts/launch.sh"
launch "$here/train.py" "$here/recipes/demo.yaml" "$@"
