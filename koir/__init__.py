"""koir: Korean information retrieval. Encoder and reranker training, evaluated together."""

import os
import sys
from importlib import util

if util.find_spec("torch") is None:  # every command comes past here
    sys.exit("error: torch is not installed here; run: bash scripts/setup.sh, then use .venv/bin/python")

# Where a hub name is given, huggingface_hub would also ask for a list of programs, to tell which of them it runs under.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
