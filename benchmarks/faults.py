"""Faults on purpose, and what they did: processes killed at random moments, a full disk, lost and stopped ranks.

    .venv/bin/python benchmarks/faults.py [--only kill-train kill-data ...] [--kills 20] [--json FILE]

A subject is a command on the bundled demo. It runs once undisturbed; then again and again in a fresh folder, killed
(SIGKILL) at a random moment or while something is being written, and started again with the same arguments, until it
was killed --kills times in all. Whenever it comes to its end, its artefact must equal the undisturbed one: weights bit
for bit, rows, indexes and results byte for byte apart from times. Whatever says that it is complete while it is not is
a loss. `input` runs the mutated files of tests/fuzz_input.py.
"""

import argparse
import contextlib
import dataclasses
import gzip
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forked processes must not meet its threads
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor torch's; one thread also makes sums the same every time
TIMES = re.compile(r"(seconds|time|milliseconds|per_second|memory|wall|pairs_s)")


@dataclasses.dataclass
class Subject:
    """A command as a function of its folder. artefact: what must be equal; resumed: arguments of a later start."""

    name: str
    script: str
    words: Callable[[Path], list[str]]
    artefact: Callable[[Path], dict[str, str]]
    resumed: Callable[[Path], list[str]] = lambda folder: []
    extra: dict = dataclasses.field(default_factory=dict)


def loaded(script: str):
    """A command's module, imported by path as `python SCRIPT` would."""
    spec = importlib.util.spec_from_file_location("subject_" + re.sub(r"\W", "_", script), ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def started(subject: Subject, folder: Path, log: Path) -> int:
    """Fork a process that runs the command on a folder; its id. Its words go to `log`."""
    words = subject.words(folder) + subject.resumed(folder)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update({"KOIR_CACHE": str(folder.parent / "cache"), "HF_HUB_OFFLINE": "1"})
        loaded(subject.script).main([str(word) for word in words])
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def being_written(folder: Path) -> bool:
    """Whether something in a folder is half there at this moment."""
    if any(folder.rglob(".*.partial")):
        return True
    return any(not (c / "trainer_state.json").exists() for c in folder.glob("checkpoints/checkpoint-*"))


def attempt(subject: Subject, folder: Path, log: Path, delay: float | None, while_writing: bool) -> int | None:
    """Run once; None when it was killed, else its status. delay: seconds until the kill, None for never."""
    child, begun = started(subject, folder, log), time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        past = time.monotonic() - begun
        if delay is not None and (past > delay and (not while_writing or being_written(folder) or past > 2 * delay)):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.0005 if while_writing else 0.002)


def killed_again_and_again(subject: Subject, kills: int, rng: random.Random) -> dict:
    """Kill a command `kills` times; how often it came to its end, and every difference to the undisturbed run."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        log, calm = place / "log.txt", place / "calm"
        begun = time.monotonic()
        status = attempt(subject, calm, log, None, False)
        took = time.monotonic() - begun
        if status:
            raise SystemExit(f"error: {subject.name} fails undisturbed ({status}):\n{log.read_text()[-2000:]}")
        wanted, done, ends, losses = subject.artefact(calm), 0, 0, []
        while done < kills or not ends:
            folder = place / f"try-{ends}"
            shutil.rmtree(place / "cache" / "indexes", ignore_errors=True)
            while True:
                delay = rng.uniform(0.02, 0.9) * took if done < kills else None
                status = attempt(subject, folder, log, delay, while_writing=done % 2 == 1)
                if status is not None:
                    break
                done += 1
                if (folder / "run.json").exists() and subject.artefact(folder) != wanted:
                    losses.append(f"kill {done}: run.json beside an artefact that is not whole")
            ends += 1
            if status:
                losses.append(f"start after kill {done} ended with {status}: {log.read_text()[-300:]}")
            elif different := [n for n, digest in wanted.items() if subject.artefact(folder).get(n) != digest]:
                losses.append(f"end {ends} after {done} kills: {', '.join(different[:3])} differ")
            shutil.rmtree(folder, ignore_errors=True)
    return {"what": f"kill {subject.name}", "tried": done, "came to its end": ends, "losses": losses}


# --- what is compared ------------------------------------------------------------------------------------------------


def timeless(content):
    """JSON without what a clock or the moment decided."""
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if not TIMES.search(k) and k not in ("command", "git")}
    return [timeless(item) for item in content] if isinstance(content, list) else content


def digest(file: Path) -> str:
    """sha256 of a file: unpacked where it is gzipped, without times where it is JSON."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    if file.suffix == ".json":
        data = json.dumps(timeless(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def files(*patterns: str) -> Callable[[Path], dict[str, str]]:
    """An artefact: the files of a folder that match."""
    return lambda folder: {
        str(file.relative_to(folder)): digest(file) for pattern in patterns for file in sorted(folder.glob(pattern))
    }


def last_checkpoint(folder: Path) -> list[str]:
    """--resume_from_checkpoint last, where there is one to resume from."""
    there = any(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))
    return ["--resume_from_checkpoint", "last"] if there else []


# --- subjects --------------------------------------------------------------------------------------------------------

TINY = ["--num_hidden_layers", "1", "--max_seq_length", "24", "--max_steps", "24", "--save_steps", "3"]


def trainer(script: str, *words: str) -> Subject:
    """A training command that saves often."""
    return Subject(
        script.removesuffix("/train.py"),
        script,
        lambda folder: [*words, *TINY, "--output_dir", folder],
        files("model/model.safetensors", "model/config.json"),
        last_checkpoint,
    )


def subjects() -> dict[str, list[Subject]]:
    """The commands that are killed, by group."""
    bi_encoder = ["--per_device_train_batch_size", "32", "--dropout", "0.1", "--max_hard_negatives", "1"]
    rows = ROOT / "koir" / "demo" / "triplets.jsonl"
    return {
        "kill-train": [
            trainer("v1/train.py", *bi_encoder),
            trainer("v1.1/train.py", *bi_encoder, "--cache_keep_tokens", "0"),
            trainer("reranker/train.py", "--per_device_train_batch_size", "8"),
        ],
        "kill-data": [
            Subject(
                "prepare_data",
                "scripts/prepare_data.py",
                lambda folder: ["--source", f"triplets={rows}", "--output_dir", folder],
                files("train-*"),
            ),
            Subject(
                "mine_negatives",
                "scripts/mine_negatives.py",
                lambda folder: [
                    "--train_data",
                    "demo",
                    "--first_stage",
                    "bm25",
                    "--output_dir",
                    folder,
                    "--rows_per_part",
                    "100",
                ],
                files("*.jsonl.gz"),
            ),  # fmt: skip
        ],
        "kill-eval": [
            Subject(
                "build_index (encoding)",
                "scripts/build_index.py",
                lambda folder: ["--corpus", "demo", "--first_stage", "dense:demo", "--index_uri", folder],
                files("*.npy", "documents.jsonl"),
            ),
            Subject(
                "evaluate",
                "evaluate.py",
                lambda folder: [
                    "--first_stage",
                    "bm25",
                    "dense:demo",
                    "hybrid:demo",
                    "--tasks",
                    "demo",
                    "--output_dir",
                    folder,
                ],
                files("*/demo.json", "*/demo.queries.jsonl"),
            ),  # fmt: skip
        ],
    }


# --- a full disk -----------------------------------------------------------------------------------------------------


def full_disk(megabytes: int = 24) -> list[dict]:
    """Train on a small tmpfs until it is full: one clear line, the last checkpoint good, and it resumes elsewhere."""
    subject = trainer("v1.1/train.py", "--per_device_train_batch_size", "16")
    with tempfile.TemporaryDirectory() as place:
        small, log = Path(place) / "small", Path(place) / "log.txt"
        small.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(small)])
        if mounted.returncode:
            return [{"what": "full disk", "tried": 0, "losses": [], "note": "skipped: tmpfs needs root"}]
        try:
            losses = []
            status = attempt(subject, small / "run", log, None, False)
            lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
            if status != 2 or len(lines) != 1 or "Traceback" in log.read_text():
                losses.append(f"status {status}, {log.read_text()[-300:]}")
            if (small / "run" / "run.json").exists():
                losses.append("run.json on a full disk")
            shutil.copytree(small / "run", Path(place) / "run")
            status = attempt(subject, Path(place) / "run", log, None, False)
            if status:
                losses.append(f"does not resume elsewhere: {log.read_text()[-300:]}")
        finally:
            subprocess.run(["umount", str(small)])
    said = lines[0] if lines else ""
    return [{"what": f"full disk ({megabytes} MB)", "tried": 1, "losses": losses, "note": said}]


# --- lost ranks ------------------------------------------------------------------------------------------------------


def lost_rank(how: signal.Signals) -> dict:
    """Two processes train; one is killed or stopped: the job must end, name it, and leave no process behind."""
    with tempfile.TemporaryDirectory() as place:
        words = [*TINY, "--max_steps", "100000", "--save_steps", "100000", "--per_device_train_batch_size", "16"]
        words += ["--ddp_timeout", "15", "--output_dir", f"{place}/run"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = os.environ | {"KOIR_CACHE": f"{place}/cache", "HF_HUB_OFFLINE": "1"}
        log = Path(place) / "log.txt"
        with log.open("w") as out:
            job = subprocess.Popen([*command, str(ROOT / "v1.1/train.py"), *words], stdout=out, stderr=out,
                                   env=environment, start_new_session=True)  # fmt: skip
        metrics = Path(place) / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            time.sleep(0.2)
            if job.poll() is not None:
                return {"what": f"rank {how.name}", "tried": 0, "losses": [log.read_text()[-500:]]}
        ranks = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(ranks[1]), how)
        begun, losses = time.monotonic(), []
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(timeout=120)
        took = time.monotonic() - begun
        if job.poll() is None:
            losses.append("the job did not end in 120 s")
        left = subprocess.run(["pgrep", "-g", str(job.pid)], capture_output=True, text=True).stdout.split()
        for process in left:
            os.kill(int(process), signal.SIGKILL)
        if left:
            losses.append(f"{len(left)} processes left behind")
        words = log.read_text()
        if job.returncode == 0 or "rank 1" not in words.replace("rank: 1", "rank 1").replace("local_rank", "rank"):
            losses.append(f"status {job.returncode}, rank 1 is not named: {words[-400:]}")
        return {"what": f"{how.name} to rank 1 of 2", "tried": 1, "losses": losses, "note": f"ended after {took:.0f} s"}


def run_group(name: str, kills: int, seed: int) -> list[dict]:
    """The table rows of one group."""
    if name == "disk":
        return full_disk()
    if name == "ranks":
        return [lost_rank(signal.SIGKILL), lost_rank(signal.SIGSTOP)]
    if name == "input":
        command = [sys.executable, str(ROOT / "tests" / "fuzz_input.py"), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True)
        return [json.loads(done.stdout.splitlines()[-1])] if done.returncode in (0, 1) else sys.exit(done.stderr)
    return [killed_again_and_again(subject, kills, random.Random(seed)) for subject in subjects()[name]]


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 when anything was lost."""
    groups = [*subjects(), "disk", "ranks", "input"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    for subject in [subject for group in subjects().values() for subject in group]:
        loaded(subject.script)  # once, here: what is forked starts in no time
    rows = []
    for name in arguments.only:
        for row in run_group(name, arguments.kills, arguments.seed):
            rows.append(row)
            ends = f", {row['came to its end']} ends" if "came to its end" in row else ""
            print(f"{row['what']:<32} {row['tried']:>7,} tried{ends}, {len(row['losses'])} lost  {row.get('note', '')}",
                  flush=True)  # fmt: skip
            for loss in row["losses"]:
                print(f"    {loss}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(row["losses"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
