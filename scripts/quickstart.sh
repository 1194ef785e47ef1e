#!/usr/bin/env bash
# The whole pipeline on the bundled demo: fine-tune, then evaluate beside the base and BM25.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
bash v1.1/scripts/finetune.sh
.venv/bin/python evaluate.py
