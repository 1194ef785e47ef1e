#!/usr/bin/env bash
# Installs what the tests need into .venv and runs the whole suite. Usage: bash scripts/test.sh [pytest arguments ...]
#   --clients [...]   real clients of the server instead, from PyPI, in an environment of their own (.venv-clients)
#   --fuzz [...]      schemathesis on the server's own OpenAPI instead, at least 2,000 cases, same environment
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

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
  bash scripts/setup.sh test
  clients_environment
  exec .venv-clients/bin/python -m pytest -q -p no:cacheprovider --confcutdir tests/clients "$@"
}

case "${1:-}" in
  --clients)
    shift
    in_clients_environment tests/clients/test_rerank_clients.py tests/clients/test_embedding_clients.py "$@"
    ;;
  --fuzz)
    shift
    in_clients_environment tests/clients/test_fuzz.py -s "$@"
    ;;
  *)
    bash scripts/setup.sh test
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    exec .venv/bin/python -m pytest "$@"
    ;;
esac
