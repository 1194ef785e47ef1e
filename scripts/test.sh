#!/usr/bin/env bash
# Installs what the tests need into .venv and runs the whole suite. Usage: bash scripts/test.sh [pytest arguments ...]
#   without arguments the demo's scores are checked too: evaluate.py --check results/expected/demo.json
#   --clients [...]   real clients of the server instead, from PyPI, in an environment of their own (.venv-clients)
#   --fuzz            20,000 damaged files, then hypothesis through every reader, then schemathesis on the server
#   --faults [...]    kills, a machine that refuses, lost ranks (benchmarks/faults.py; see docs/faults.md)
# Where there is a chromium (or KOIR_BROWSER=/path/to/one) the board is tested in it too, unless -m "not browser".
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
bash scripts/setup.sh test

clients_environment() {
  local wanted stamp=".venv-clients/.installed"
  wanted="$(sha256sum < tests/clients/requirements.txt)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  echo "setup: installing the clients (a few minutes the first time)" >&2
  [ -x .venv-clients/bin/python ] || .venv/bin/python -m venv .venv-clients
  .venv-clients/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
  printf '%s\n' "$wanted" > "$stamp"
}

in_clients_environment() {
  clients_environment
  exec .venv-clients/bin/python -m pytest -q -p no:cacheprovider --confcutdir tests/clients "$@"
}

whole_suite() {
  local status=0 workers
  workers="$(nproc)"
  if [ "$workers" -gt 4 ]; then workers=4; fi
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "$workers" --dist loadfile "$@" || status=$?
  if [ $# = 0 ]; then .venv/bin/python evaluate.py --check results/expected/demo.json || status=$?; fi
  if [ -z "${KOIR_BROWSER:-}" ] && ! command -v chromium chromium-browser >/dev/null; then
    echo "SKIPPED: the board in a browser; there is no chromium (Debian: apt-get install -y chromium fonts-noto-cjk)" >&2
  fi
  return "$status"
}

case "${1:-}" in
  --clients)
    shift
    in_clients_environment tests/clients/test_rerank_clients.py tests/clients/test_embedding_clients.py "$@"
    ;;
  --fuzz)
    shift
    .venv/bin/python tests/fuzz_input.py
    in_clients_environment tests/clients/test_readers.py tests/clients/test_fuzz.py -s "$@"
    ;;
  --faults)
    shift
    exec .venv/bin/python benchmarks/faults.py "$@"
    ;;
  *)
    whole_suite "$@"
    ;;
esac
