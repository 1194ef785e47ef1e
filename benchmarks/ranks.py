"""Two training processes, one of which is lost, or both of which are told to go: part of benchmarks/faults.py."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from subjects import ROOT, TINY, digest


def two_processes(place: Path, *more: str) -> subprocess.Popen:
    """finetune.sh that trains in two processes, to place/run; its words go to place/log.txt."""
    words = [*TINY, "--per_device_train_batch_size", "16", "--ddp_timeout", "15", "--output_dir", f"{place}/run", *more]
    environment = os.environ | {"KOIR_CACHE": f"{place}/cache", "HF_HUB_OFFLINE": "1", "NPROC_PER_NODE": "2"}
    with (place / "log.txt").open("w") as out:
        return subprocess.Popen(["bash", str(ROOT / "v1.1/scripts/finetune.sh"), *words], stdout=out, stderr=out,
                                env=environment)  # fmt: skip


def training(job: subprocess.Popen, place: Path) -> list[str]:
    """The ids of the ranks, as soon as three steps are done."""
    metrics = place / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.05)
        if job.poll() is not None:
            raise SystemExit(f"error: two processes fail undisturbed: {(place / 'log.txt').read_text()[-2000:]}")
    return children(children(job.pid)[0])


def children(process: int | str) -> list[str]:
    """The ids of the processes that a process started, oldest first."""
    return subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout.split()


def ended(job: subprocess.Popen, ranks: list[str]) -> tuple[float, list[str]]:
    """The seconds a job took to end, and what is wrong about that: it did not, or its ranks live on."""
    begun, losses = time.monotonic(), []
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(timeout=120)
    took = time.monotonic() - begun
    if job.poll() is None:
        losses.append("the job did not end in 120 s")
    for rank in [rank for rank in ranks if Path(f"/proc/{rank}").exists()]:
        losses.append(f"process {rank} is left behind")
        os.kill(int(rank), signal.SIGKILL)
    return took, losses


def lost(how: signal.Signals) -> dict:
    """Two processes train; one is killed or stopped: the job must end, name it, and leave no process behind."""
    with tempfile.TemporaryDirectory() as place:
        job = two_processes(Path(place), "--max_steps", "100000", "--save_steps", "100000")
        ranks = training(job, Path(place))
        os.kill(int(ranks[1]), how)
        took, losses = ended(job, ranks)
        said = (Path(place) / "log.txt").read_text()
        lines = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
        if job.returncode == 0 or "Traceback" in said or not any(line.startswith("rank 1 ") for line in lines):
            losses.append(f"status {job.returncode}, rank 1 is not named: {said[-400:]}")
        note = f"status {job.returncode} after {took:.0f} s: {'; '.join(lines)}"
        return {"what": f"{how.name} to rank 1 of 2", "tried": 1, "losses": losses, "note": note}


def preempted() -> dict:
    """SIGTERM to finetune.sh with two processes: a checkpoint, status 143, and the undisturbed weights on resuming."""
    weights, steps = [], ("--max_steps", "300", "--save_steps", "300")
    with tempfile.TemporaryDirectory() as place:
        two_processes(Path(place), *steps).wait()
        weights.append(digest(Path(place) / "run/model/model.safetensors"))
    with tempfile.TemporaryDirectory() as place:
        job = two_processes(Path(place), *steps)
        ranks = training(job, Path(place))
        job.terminate()
        took, losses = ended(job, ranks)
        said = (Path(place) / "log.txt").read_text()
        if job.returncode != 143 or "resume with" not in said or "Traceback" in said:
            losses.append(f"status {job.returncode}: {said[-400:]}")
        two_processes(Path(place), *steps, "--resume_from_checkpoint", "last").wait()
        weights.append(digest(Path(place) / "run/model/model.safetensors"))
    if weights[0] != weights[1]:
        losses.append("other weights after resuming")
    return {"what": "SIGTERM to 2 processes", "tried": 1, "losses": losses, "note": f"status 143 after {took:.0f} s"}
