#!/usr/bin/env bash
# Installs what the tests need into .venv and runs the whole suite. Usage: bash scripts/test.sh [pytest arguments ...]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
bash scripts/setup.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
