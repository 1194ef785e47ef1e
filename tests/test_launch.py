"""scripts/launch.py: several processes end with the status and the name of the one that mattered."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import loaded
from one_step import tiny_encoder

from koir.runs.folder import complete

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import os, signal, sys, time
rank = os.environ["RANK"]
if sys.argv[1] == "kill":
    open(os.environ["KOIR_FOLDER"], "w").write(sys.argv[2])
    if rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
def save(*_):
    time.sleep(int(rank))
    print("saved by", rank, flush=True)
    os._exit(143)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(100)
"""


@pytest.fixture
def job(tmp_path):
    """Starts two processes of WORKER as finetune.sh would; its words go to tmp_path/log.txt."""
    (tmp_path / "worker.py").write_text(WORKER)
    script = f'source {ROOT}/scripts/launch.sh; run_to_the_end "" "$@"'
    launcher = [sys.executable, ROOT / "scripts/launch.py", "--standalone", "--nproc_per_node", "2"]

    def start(how):
        words = ["bash", "-c", script, "bash", *launcher, tmp_path / "worker.py", how, tmp_path / "run"]
        with (tmp_path / "log.txt").open("w") as out:
            return subprocess.Popen(words, stdout=out, stderr=out)

    return start


def test_a_rank_that_is_killed_is_named_and_what_is_left_to_resume_from(job, tmp_path):
    state = tmp_path / "run/checkpoints/checkpoint-2/trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{\n}\n")
    assert job("kill").wait(timeout=60) == 137
    said = (tmp_path / "log.txt").read_text()
    assert "error: rank 1 was ended by SIGKILL\n" in said and "memory ran out" in said and "Traceback" not in said
    assert f"--output_dir {tmp_path / 'run'} --resume_from_checkpoint last" in said
    assert "a smaller --chunk_tokens, --cache_keep_tokens 0" in said


def test_sigterm_reaches_every_process_and_waits_for_what_each_has_to_save(job, tmp_path):
    process, log = job("term"), tmp_path / "log.txt"
    deadline = time.monotonic() + 60
    while log.read_text().count("up") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 143
    said = log.read_text()
    assert "saved by 0" in said and "saved by 1" in said and "Traceback" not in said


def test_sigterm_to_a_training_in_two_processes_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    tiny_encoder().save(tmp_path / "base")
    run, log = tmp_path / "run", tmp_path / "log.txt"
    words = ["--standalone", "--nproc_per_node", "2", ROOT / "v1.1/train.py", "--model_name_or_path", tmp_path / "base"]
    words += [
        "--output_dir",
        run,
        "--max_seq_length",
        "16",
        "--per_device_train_batch_size",
        "4",
        "--save_steps",
        "1000",
    ]
    command = [sys.executable, ROOT / "scripts/launch.py", *words, "--max_steps", "100000"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 143, log.read_text()
    assert log.read_text().count(f"stopped by SIGTERM; resume with --output_dir {run}") == 1
    assert "Traceback" not in log.read_text() and "error: " not in log.read_text()
    (checkpoint,) = (run / "checkpoints").iterdir()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert complete(checkpoint) and (checkpoint / "model.safetensors").exists() and not (run / "model").exists()


LOST = [  # (rank, exit code, seconds after the first) ...
    ("killed, found at the same moment as the one that missed it", [(0, 2, 0), (1, -9, 0)], 137, ["rank 1", "SIGKILL"]),
    ("an error of its own, the others closed", [(3, 2, 0), (0, -15, 1), (1, 2, 1)], 2, ["rank 3 ended first"]),
    ("hung until it was killed", [(0, 2, 0), (2, 2, 1), (1, -9, 31)], 2, ["rank 0 ended first", "rank 1 hung"]),
    ("stopped", [(0, 143, 0), (1, -15, 0)], 143, []),
]


@pytest.mark.parametrize(("failures", "status", "named"), [case[1:] for case in LOST], ids=[case[0] for case in LOST])
def test_the_process_that_mattered_is_named(failures, status, named):
    found = {rank: SimpleNamespace(exitcode=code, timestamp=1000 + after) for rank, code, after in failures}
    code, lines = loaded("scripts/launch.py").last_words(found)
    assert code == status and all(word in "\n".join(lines) for word in named) and bool(lines) == bool(named)
