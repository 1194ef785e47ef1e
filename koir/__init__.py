"""koir: Korean information retrieval. Encoder and reranker training, evaluated together."""

import contextlib
import os
import signal
import sys
from importlib import util
from pathlib import Path

COMMANDS = ("evaluate.py", "leaderboard.py", "scripts", "v1", "v1.1", "reranker")


def _of_a_command() -> bool:
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or "-").resolve()
    root = Path(__file__).resolve().parents[1]
    return main.is_relative_to(root) and main.relative_to(root).parts[0] in COMMANDS


if _of_a_command() and sys.stdout:  # what a terminal or log cannot show, such as a path in CP949, is no reason to fail
    sys.stdout.reconfigure(errors="backslashreplace")

# Libraries that load make errors of their own out of Ctrl-C, so until `main` (errors.py) it ends a command at once.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _of_a_command():
    with contextlib.suppress(ValueError):  # a thread of Streamlit's, which minds Ctrl-C itself
        signal.signal(signal.SIGINT, signal.SIG_DFL)

if util.find_spec("torch") is None:  # every command comes past here
    sys.exit("error: torch is not installed here; run: bash scripts/setup.sh, then use .venv/bin/python")

# Where a hub name is given, huggingface_hub would also ask for a list of programs, to tell which of them it runs under.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
