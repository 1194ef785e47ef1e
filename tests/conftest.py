"""What every test has in common: its own cache folder, no hub, and koir importable from any directory."""

import os
import sys
import tempfile
from pathlib import Path

from toy import any_bfloat16, rows, teacher_rows  # noqa: F401 (fixtures for every file)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported, so no fixture would be early enough


def pytest_configure(config):
    cache = tempfile.TemporaryDirectory(prefix="koir-tests-")  # one for the session: the demo's base is drawn once
    os.environ["KOIR_CACHE"] = cache.name
    config.add_cleanup(cache.cleanup)
