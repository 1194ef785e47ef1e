"""A server process for tests: scripts/serve.py over tiny models, on a free loopback port."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}


def free_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@contextlib.contextmanager
def serving(*flags, log, python=sys.executable, ready="/ready", script=("scripts/serve.py",), seconds=120):
    """Start it, wait until it is ready, yield (process, base URL), and stop it. log: a file for what it prints."""
    port = free_port()
    with open(log, "w", encoding="utf-8") as out:
        words = [str(python), *script, "--port", str(port), *map(str, flags)]
        process = subprocess.Popen(words, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=out, stderr=out)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url + ready, timeout=5):
                break
            assert process.poll() is None and time.monotonic() < deadline, Path(log).read_text(encoding="utf-8")
            time.sleep(0.1)
        yield process, url
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        process.wait()
