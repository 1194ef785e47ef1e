"""schemathesis over our own OpenAPI: thousands of bodies, good and bad, and never a 5xx."""

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import KEY

CASES = int(os.environ.get("KOIR_FUZZ_CASES", 2000))


def test_no_input_gives_a_5xx(server, folders):
    words = [str(Path(sys.executable).with_name("schemathesis")), "run", server + "/openapi.json"]
    words += ["--header", f"Authorization: Bearer {KEY}", "--checks", "not_a_server_error", "--seed", "20241"]
    words += ["--mode", "all", "--max-examples", str(CASES // 20), "--phases", "examples,coverage,fuzzing"]
    words += ["--continue-on-failure", "--suppress-health-check", "all"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folders, timeout=3000)
    print(done.stdout[-3000:])
    lines = (folders / "log").read_text(encoding="utf-8").splitlines()
    statuses = [int(found[1]) for line in lines if (found := re.search(r" (?:GET|POST|\w+) /\S* (\d{3}) ", line))]
    print(f"{len(statuses):,} requests:", {status: statuses.count(status) for status in sorted(set(statuses))})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert len(statuses) >= CASES and max(statuses) < 500
