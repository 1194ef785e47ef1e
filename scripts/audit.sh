#!/usr/bin/env bash
# Asks for known vulnerabilities of what is installed in .venv (pip-audit, in an environment of its own: .venv-audit).
# Usage: bash scripts/audit.sh [-s osv]      0: none known, 1: some, or no answer about a package, which is no pass
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
there="$root/.venv-audit" version="pip-audit==2.9.0"
bash "$root/scripts/setup.sh"
if ! [ -x "$there/bin/python" ]; then "$root/.venv/bin/python" -m venv "$there"; fi
if ! "$there/bin/python" -m pip install --quiet --disable-pip-version-check "$version" 2> "$there/log"; then
  echo "error: $version: found $(tail -n 1 "$there/log" | cut -c1-160); expected an index that has it" >&2
  exit 1
fi
# As names and versions, so that a build of torch (2.13.0+cpu) is asked for by the version that it is.
"$root/.venv/bin/python" -m pip list --format freeze --disable-pip-version-check 2> /dev/null \
  | sed 's/+.*//' | grep -v '^koir==' > "$there/packages.txt"
status=0
"$there/bin/python" -m pip_audit --requirement "$there/packages.txt" --no-deps --disable-pip --timeout 10 --progress-spinner off \
  --format json "$@" > "$there/answer.json" 2> "$there/log" || status=$?
"$there/bin/python" - "$there/answer.json" <<'PYTHON' || status=$?
import json, sys
try:
    with open(sys.argv[1]) as answer:
        packages = json.load(answer)["dependencies"]
except ValueError:
    sys.exit("error: the vulnerability service: found no answer; expected a network that reaches pypi.org (or -s osv)")
for package in packages:
    for known in package.get("vulns", []):
        print(package["name"], package["version"], known["id"], "mended in", ", ".join(known["fix_versions"]) or "none")
silent = [package["name"] for package in packages if "skip_reason" in package]
asked = len(packages) - len(silent)
print(f"{asked} of {len(packages)} packages were answered for, {sum(map(bool, (p.get('vulns') for p in packages)))} have known vulnerabilities")
if silent:
    print(f"error: no answer about {len(silent)} packages ({', '.join(silent[:5])}, ...); expected one about each", file=sys.stderr)
    sys.exit(1)
PYTHON
exit "$status"
