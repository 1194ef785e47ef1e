"""Commands on the bundled demo that benchmarks/faults.py disturbs: how each is started, and what has to come out."""

import dataclasses
import functools
import gc
import gzip
import hashlib
import importlib.util
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forked processes must not meet its threads
os.environ["OMP_NUM_THREADS"] = "1"  # nor torch's; one thread also makes sums the same every time

from koir.runs.folder import complete  # noqa: E402

TIMES = re.compile(r"(seconds|time|milliseconds|per_second|memory|wall|pairs_s|_ms$)")
TINY = ["--num_hidden_layers", "1", "--max_seq_length", "16", "--max_steps", "18", "--save_steps", "2"]


@dataclasses.dataclass
class Subject:
    """A command. words: its arguments for a folder. made: patterns of the files in it that must be equal, all there.

    middle: a pattern of which the first file says that a checkpoint, part or result is whole.
    """

    name: str
    script: str
    words: Callable[[Path], list]
    made: tuple[str, ...]
    middle: str

    def arguments(self, folder: Path) -> list[str]:
        """What the command is started with; with a checkpoint in the folder, to resume from it."""
        there = any(complete(checkpoint) for checkpoint in folder.glob("checkpoints/checkpoint-*"))
        return [str(word) for word in self.words(folder)] + ["--resume_from_checkpoint", "last"] * there

    def artefact(self, folder: Path) -> dict[str, str]:
        """File -> digest of what it made; a pattern that matches nothing counts as a file that is not there."""
        files = {pattern: sorted(folder.glob(pattern)) for pattern in self.made}
        found = {str(file.relative_to(folder)): digest(file) for of_one in files.values() for file in of_one}
        return found | {pattern: "nothing" for pattern, of_one in files.items() if not of_one}


@functools.cache
def loaded(script: str):
    """A command's module, imported by path as `python SCRIPT` would, with what it imports later."""
    import deepspeed  # noqa: F401 (accelerate imports it, slowly, where it is installed)

    spec = importlib.util.spec_from_file_location("subject_" + re.sub(r"\W", "_", script), ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    gc.freeze()  # what is loaded is shared with every fork, and never looked through again
    return module


def started(subject: Subject, folder: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Fork a process that runs the command on a folder; its id. Its words go to `log`. before: done in it first."""
    words, module = subject.arguments(folder), loaded(subject.script)  # imported here: the fork starts in no time
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update({"KOIR_CACHE": str(log.parent / "cache"), "HF_HUB_OFFLINE": "1"})
        before()
        module.main(words)
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def being_written(folder: Path) -> bool:
    """Whether something in a folder is half there at this moment."""
    if any(name.endswith(".partial") for place in (folder, *folder.glob("*/")) for name in os.listdir(place)):
        return True
    return any(not (c / "trainer_state.json").exists() for c in folder.glob("checkpoints/checkpoint-*"))


def attempt(
    subject: Subject,
    folder: Path,
    log: Path,
    delay: float | None = None,
    while_writing: bool = False,
    before: Callable[[], None] = lambda: None,
    watch: Callable[[int], None] = lambda child: None,
) -> tuple[int | None, bool]:
    """Run once. None when it was killed, else its status; and whether something was being written at the kill.

    delay: seconds until the kill, None for never. while_writing: later, as soon as something is being written.
    before: done first in the process. watch: done again and again with its id.
    """
    child, begun = started(subject, folder, log, before), time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), False
        watch(child)
        past = time.monotonic() - begun
        if delay is not None and past > delay:
            half = folder.is_dir() and being_written(folder)
            if half or not while_writing or past > 2 * delay:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None, half
        time.sleep(0.002)


def undisturbed(subject: Subject, place: Path) -> tuple[dict[str, str], float]:
    """The artefact of a calm run in place/calm, and the seconds it took."""
    begun, log = time.monotonic(), place / "log.txt"
    status, _ = attempt(subject, place / "calm", log)
    artefact = subject.artefact(place / "calm")
    if status or "nothing" in artefact.values():
        raise SystemExit(f"error: {subject.name} fails undisturbed ({status}):\n{log.read_text()[-2000:]}")
    return artefact, time.monotonic() - begun


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


# --- the commands ----------------------------------------------------------------------------------------------------


def _trainer(script: str, *words: str) -> Subject:
    made = ("model/model.safetensors", "model/config.json", "model/tokenizer.json")
    name, middle = script.removesuffix("/train.py"), "checkpoints/*checkpoint-4*"  # half there: checkpoint-2 is whole
    return Subject(name, script, lambda folder: [*words, *TINY, "--output_dir", folder], made, middle)


BI_ENCODER = ["--per_device_train_batch_size", "8", "--dropout", "0.1", "--max_hard_negatives", "1"]
ROWS = ROOT / "koir" / "demo" / "triplets.jsonl"
MINED = ["--train_data", "demo", "--first_stage", "bm25", "--rows_per_part", "100"]
INDEXED = ["--corpus", "demo", "--first_stage", "dense:demo"]
EVALUATED = ["--first_stage", "bm25", "dense:demo", "hybrid:demo", "--reranker", "none", "demo", "--depth", "5"]
SUBJECTS = {
    "kill-train": [
        _trainer("v1/train.py", *BI_ENCODER),
        _trainer("v1.1/train.py", *BI_ENCODER, "--cache_keep_tokens", "0"),
        _trainer("reranker/train.py", "--per_device_train_batch_size", "4"),
    ],
    "kill-data": [
        Subject(
            "prepare_data",
            "scripts/prepare_data.py",
            lambda folder: ["--source", f"triplets={ROWS}", "--shard_rows", "100", "--output_dir", folder],
            ("train-*",),
            ".cleaned/00000.jsonl.gz",
        ),
        Subject(
            "mine_negatives",
            "scripts/mine_negatives.py",
            lambda folder: [*MINED, "--output_dir", folder],
            ("*.jsonl.gz", "report.json"),
            "part-00000.jsonl.gz",
        ),
    ],
    "kill-eval": [
        Subject(
            "build_index (encoding)",
            "scripts/build_index.py",
            lambda folder: [*INDEXED, "--index_uri", folder],
            ("dense-*/vectors.npy", "dense-*/ids.json", "documents.jsonl"),
            "dense-*.shards/*.npy",
        ),
        Subject(
            "evaluate",
            "evaluate.py",
            lambda folder: [*EVALUATED, "--tasks", "demo", "--output_dir", folder],
            ("*/demo.json", "*/demo.queries.jsonl", "*/pipeline.json"),
            "*/demo.json",
        ),
    ],
}
