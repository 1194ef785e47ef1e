#!/usr/bin/env bash
# Makes .venv and installs requirements.txt into it; silent and instant when nothing changed since the last time.
# Usage: bash scripts/setup.sh [EXTRA ...]      extras of pyproject.toml, "test" for one
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extras="$*"
python="$root/.venv/bin/python"
wanted="$(cat "$root/requirements.txt" "$root/pyproject.toml" | sha256sum | cut -c1-16) $extras"
stamp="$root/.venv/.installed"
if [ -x "$python" ] && [ -f "$stamp" ] && grep -qxF -e "$wanted" "$stamp"; then exit 0; fi

if [ ! -x "$python" ]; then
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && break
    candidate=""
  done
  [ -n "$candidate" ] || { echo "error: no Python found; expected 3.11 or newer (name one: PYTHON=/path/to/python)" >&2; exit 2; }
  echo "setup: making .venv with $("$candidate" --version)" >&2
  "$candidate" -m venv "$root/.venv" || { echo "error: $candidate cannot make .venv (Debian: apt-get install python3-venv)" >&2; exit 2; }
fi
echo "setup: installing (a few minutes the first time)" >&2
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@" 2> >(grep -v '^WARNING: Location' >&2); }
install -r "$root/requirements.txt" -e "$root${extras:+[${extras// /,}]}" \
  || { echo "error: the installation failed; the lines above say why. Run the same command again to go on." >&2; exit 2; }
if [ -f "$stamp" ] && ! grep -qF -e "${wanted%% *}" "$stamp"; then rm "$stamp"; fi
printf '%s\n' "${wanted%% *} " "$wanted" >> "$stamp"  # with extras, the plain set is there too
