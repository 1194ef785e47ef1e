"""What is foreign is not trusted: no network unasked, no pickle run, no code of a model, no secret written."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from one_step import tiny_encoder, trainer_module
from test_reranker import tiny_reranker

from koir import manifest
from koir.arguments import ModelArguments
from koir.encoder import load_encoder
from koir.errors import FlagError, ModelError, RunError
from koir.manifest import origin
from koir.reranker import load_reranker
from koir.reranker_arguments import RerankerModelArguments
from koir.retrieval.opening import open_index
from koir.retrieval.stages import first_stage
from koir.runs.encoders import ENCODER
from koir.runs.rerankers import RERANKER

HERE = Path(__file__).parent


def test_the_demo_trains_and_is_evaluated_with_every_socket_blocked(tmp_path):
    online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, str(HERE / "no_network.py"), str(tmp_path)], env=online, cwd=HERE.parent,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "run.json").exists() and list(tmp_path.glob("results/dense-*/run.json"))


# --- pickles and code ------------------------------------------------------------------------------------------------


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def trap(place, sprung):
    """A file as torch saves it, which leaves `sprung` when it is unpickled."""
    torch.save(Trap(sprung), place)


@pytest.mark.parametrize("kind", ["encoder", "reranker"])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(kind, tmp_path):
    folder, sprung = tmp_path / "model", tmp_path / "sprung"
    tiny_encoder().save(folder) if kind == "encoder" else tiny_reranker(folder)
    (folder / "model.safetensors").unlink()
    trap(folder / "pytorch_model.bin", sprung)
    pickle.loads(pickle.dumps(Trap(tmp_path / "works")))
    assert (tmp_path / "works").exists(), "the trap springs where it is trusted"
    with pytest.raises(ModelError, match="safetensors"):
        load_encoder(str(folder)) if kind == "encoder" else load_reranker(str(folder))
    (folder / "model.safetensors").write_bytes((folder / "pytorch_model.bin").read_bytes())
    with pytest.raises(ModelError):
        load_encoder(str(folder)) if kind == "encoder" else load_reranker(str(folder))
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["xlm-roberta", "of-its-own"])
def test_code_that_comes_with_a_model_is_not_run_unless_told_to(kind, tmp_path):
    folder, sprung = tmp_path / "model", tmp_path / "sprung"
    tiny_encoder().save(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": [None, "own.Words"]}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind, "auto_map": names}))
    (folder / "own.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    if kind == "xlm-roberta":
        load_encoder(str(folder))
    else:
        with pytest.raises(ModelError):
            load_encoder(str(folder))
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["encoder", "reranker"])
def test_running_a_models_own_code_is_warned_of(kind, capsys):
    loader = {"encoder": ENCODER, "reranker": RERANKER}[kind].loader
    arguments = {"encoder": ModelArguments, "reranker": RerankerModelArguments}[kind]
    loader(arguments(model_name_or_path="a/model"))
    assert capsys.readouterr().err == ""
    loader(arguments(model_name_or_path="a/model", trust_remote_code=True))
    assert capsys.readouterr().err == "warning: code that comes with a/model will run here\n"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The words of a small training, and a folder in which it stopped after its second step."""
    folder = tmp_path_factory.mktemp("run")
    tiny_encoder().save(folder / "base")
    words = ["--model_name_or_path", folder / "base", "--max_seq_length", "16", "--per_device_train_batch_size", "8"]
    words = [str(word) for word in (*words, "--save_steps", "2", "--use_cpu")]
    trainer_module("v1").main([*words, "--max_steps", "2", "--output_dir", str(folder / "run")])
    (folder / "run" / "run.json").unlink()
    return [*words, "--max_steps", "3"], folder / "run"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_with_a_crafted_pickle_is_refused_and_not_run(name, interrupted, tmp_path, monkeypatch):
    words, run = interrupted
    shutil.copytree(run, tmp_path / "run")
    trap(tmp_path / "run" / "checkpoints" / "checkpoint-2" / name, tmp_path / "sprung")
    resumed = [*words, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "last"]
    with pytest.raises(SystemExit) as left:
        trainer_module("v1").main(resumed)
    assert left.value.code == 2 and not (tmp_path / "sprung").exists()


def test_weights_cut_short_are_said_in_one_line(interrupted, tmp_path, capsys):
    words, run = interrupted
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "checkpoint-2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SystemExit):
        trainer_module("v1").main([*words, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "last"])
    assert f"\nerror: {file}: found" in capsys.readouterr().err


# --- secrets ---------------------------------------------------------------------------------------------------------

URI = "http://root:hunter2@milvus.example:19530"


def test_a_password_in_a_uri_is_refused_and_not_repeated():
    for refused in (lambda: first_stage("bm25", URI), lambda: open_index(URI)):
        with pytest.raises(FlagError, match="MILVUS_TOKEN") as caught:
            refused()
        assert "hunter2" not in str(caught.value) and "milvus.example" in str(caught.value)


def test_neither_messages_nor_run_json_hold_a_password(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--index_uri", URI, "--data_root", "https://hf_secret@hub/x"])
    assert (
        origin()["command"] == "evaluate.py --index_uri http://***@milvus.example:19530 --data_root https://***@hub/x"
    )
    assert "hunter2" not in str(RunError(URI, URI, URI))
    assert manifest.without_passwords("a@b.kr https://hub/x@main") == "a@b.kr https://hub/x@main"


# --- what the source may not hold ------------------------------------------------------------------------------------

NEVER = {
    "a shell": r"shell=True|os\.system\(|os\.popen\(",
    "a pickle": r"^\s*(import|from) (pickle|dill|joblib|shelve)|allow_pickle=True|weights_only=False",
    "YAML that builds objects": r"yaml\.(load|unsafe_load|full_load)\(",
    "text run as code": r"(?<![\w.])(eval|exec)\(",
    "archives unpacked": r"\.extractall\(|\.unpack_archive\(",
}


def test_the_source_has_no_shell_pickle_or_code_from_text():
    files = [
        file for part in ("koir", "v1", "v1.1", "reranker", "scripts") for file in (HERE.parent / part).rglob("*.py")
    ]
    lines = [(file, line) for file in [*files, HERE.parent / "evaluate.py"] for line in file.read_text().splitlines()]
    found = [(what, file.name, line) for what, sign in NEVER.items() for file, line in lines if re.search(sign, line)]
    assert [(what, name) for what, name, _ in found] == [("a pickle", "command.py")], found  # its error's name alone
    loads = [line for _, line in lines if "torch.load(" in line]
    assert all("weights_only=True" in line for line in loads)
