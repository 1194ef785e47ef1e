"""Real clients against our server on loopback: one server for all, and a table of what passed at the end."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "ANONYMIZED_TELEMETRY": "false"}
OURS = Path(os.environ.get("KOIR_PYTHON", ROOT / ".venv/bin/python"))  # the server's own environment
MODELS = """
import sys
from koir.encoder import load_encoder
from koir.manifest import DEMO
from koir.reranker import load_reranker
import torch
torch.manual_seed(0)
for kind, model in (
    ("encoder", load_encoder("demo", num_hidden_layers=1)),
    ("reranker", load_reranker(str(DEMO / "base"), new_head=True, num_hidden_layers=1)),
):
    words = model.transformer.get_input_embeddings().weight
    torch.nn.init.normal_(words)  # far apart: with the bundled ones the last bit decides ranks
    model.save(sys.argv[1] + "/" + kind)
"""
KEY = "a-key-for-tests"
ROWS = pytest.StashKey()


def pytest_configure(config):
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny models and an index, made by our own environment."""
    there = tmp_path_factory.mktemp("models")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    index = ["scripts/build_index.py", "--corpus", "demo", "--first_stage", f"dense:{there / 'encoder'}"]
    for words in (["-c", MODELS, str(there)], [*index, "--index_uri", str(there / "index")]):
        subprocess.run([OURS, *words], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    return there


@pytest.fixture(scope="session")
def server(folders):
    """The base URL of a server that asks for a key."""
    from served import serving

    (folders / "keys").write_text(KEY + "\n", encoding="utf-8")
    flags = ["--index_uri", folders / "index", "--reranker", folders / "reranker"]
    flags += ["--api_key_file", folders / "keys", "--dtype", "float32"]
    with serving(*flags, log=folders / "log", python=OURS, seconds=300) as (_, url):
        yield url


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    mark = item.get_closest_marker("client")
    if call.when == "call" and mark:
        package, what, route = mark.args
        passed = "yes" if outcome.get_result().passed else "NO"
        row = (what, f"{package} {importlib.metadata.version(package)}", route, passed)
        item.config.stash[ROWS].append(row)


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if rows:
        lines = ["| client | version | route | passed |", "|---|---|---|---|"]
        terminalreporter.write_line("\n".join(["", *lines, *[f"| {' | '.join(row)} |" for row in rows]]))
