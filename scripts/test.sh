#!/usr/bin/env bash
# Installs what the tests need into .venv and runs the whole suite. Usage: bash scripts/test.sh [pytest arguments ...]
# Where there is a chromium (or KOIR_BROWSER=/path/to/one) the board is tested in it too, unless -m "not browser".
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
bash scripts/setup.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
status=0
.venv/bin/python -m pytest "$@" || status=$?
if [ -z "${KOIR_BROWSER:-}" ] && ! command -v chromium chromium-browser >/dev/null; then
  echo "SKIPPED: the board in a browser; there is no chromium (Debian: apt-get install -y chromium fonts-noto-cjk)" >&2
fi
exit $status
