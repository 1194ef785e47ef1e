"""run.json beside every artefact, written last; files and folders that appear complete or not at all."""

import contextlib
import fcntl
import functools
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from koir.errors import FlagError, ModelError, RunError, nearest_beside, without_passwords

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path(__file__).parent / "demo"
A_DAY = 86400  # seconds
REPORTED = (
    "torch",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "accelerate",
    "datasets",
    "deepspeed",
    "numpy",
)


def cache_folder() -> Path:
    """Where derived files live: $KOIR_CACHE, else ~/.cache/koir. Safe to delete at any time.

    Raises RunError where none can be made: a service's user may have no home, or one that is not there.
    """
    folder = Path(os.environ.get("KOIR_CACHE") or "~/.cache/koir")
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower().rstrip(".")
        raise RunError(f"the cache folder {folder}", why, "KOIR_CACHE=FOLDER, one that may be written") from None
    return folder


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it takes `path`'s place only if nothing was raised.

    What a process that was killed outright left of the same name goes once it is a day old: another may still write.
    Raises RunError where a file would take the place of a folder or device, and where no folder can be.
    """
    if not path.name:
        raise RunError(str(path), "a folder", "the name of something to write")
    if _is_device(path):
        raise RunError(str(path), "a device", "the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # what only shows files, as /proc does
        raise RunError(str(path.parent), "a file system that takes no folders", "a place that may be written") from None
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > A_DAY:
                _remove(left)
    try:
        yield aside
        if path.is_dir() and aside.is_file():
            raise RunError(str(path), "a folder", "the name of a file to write")
        if path.is_dir() and aside.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(aside, path)
    finally:
        _remove(aside)


def _remove(remains: Path) -> None:
    """A file or folder goes, where it can: what was raised says more than that its remains cannot."""
    if remains.is_dir():
        shutil.rmtree(remains, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            remains.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder that is there as the one command that writes to it; left empty, it goes.

    doing: what another one would be at. Of several processes the first holds it. Raises RunError where another command
    does, one started twice or the training that a finetune.sh that was killed leaves behind; the folder is then its.
    """
    if int(os.environ.get("RANK", 0)):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder, doing)
        try:
            yield
        finally:  # still locked, so that nobody's but ours is removed
            with contextlib.suppress(OSError):
                folder.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, doing: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"--output_dir {folder}", f"another process that {doing} there", "its end first") from None
    except OSError:  # a file system that knows no locks
        pass


def _is_device(path: Path) -> bool:
    """Whether a name is /dev/null's, /dev/stdout's or a pipe's: a file renamed to it would take its place for all."""
    return path.absolute().parent == Path("/dev") or (path.exists() and not (path.is_file() or path.is_dir()))


def check_outputs(output_dir: str, json_file: str | None) -> None:
    """Raise FlagError, before any work, where --output_dir names a file, lies below one or in a folder that may not be
    written, or --json names a folder or a device."""
    path = next(path for path in (Path(output_dir), *Path(output_dir).parents) if path.exists())
    if not path.is_dir():
        raise FlagError(f"--output_dir {output_dir}", f"a file ({path})", "a folder, or a name that is free")
    if not os.access(path, os.W_OK):
        found = f"a folder that may not be written ({path.absolute()})"
        raise FlagError(f"--output_dir {output_dir}", found, "one that may")
    if json_file and (Path(json_file).is_dir() or not Path(json_file).name):
        raise FlagError(f"--json {json_file}", "a folder", "the name of a file to write")
    if json_file and _is_device(Path(json_file)):
        raise FlagError(f"--json {json_file}", "a device", "the name of a file to write")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    A byte of a path that is none (a folder named in CP949) is written as \\udcc0, which in JSON means itself.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: object) -> None:
    """Write JSON for people and programs, Hangul as itself, whole or not at all."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def origin() -> dict:
    """What every artefact records of where it came from: command, commit, versions, hardware."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    hardware = {"machine": platform.machine(), "cores": os.cpu_count(), "gpus": gpus}
    hardware["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    versions = {"python": platform.python_version()}
    for package in REPORTED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    command = " ".join(map(shlex.quote, [Path(sys.argv[0]).name, *sys.argv[1:]]))
    return {"command": without_passwords(command), "git": _git(), "versions": versions, "hardware": hardware}


def _git() -> dict | None:
    try:
        say = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()
        return {"commit": say("rev-parse", "HEAD"), "dirty": bool(say("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_bytes() -> int:
    """The most memory this process has held: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_run(folder: Path, **needed: type) -> dict:
    """The run.json of a complete run folder. needed: keys that it must have, and of which type.

    Raises RunError when it is missing, broken or lacks one.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise RunError(str(folder), "no run.json (the run did not finish)", "a complete run folder")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(str(file), f"broken JSON ({error})", "a run.json as training writes it") from None
    known = facts if isinstance(facts, dict) else {}
    lacking = [name for name, kind in needed.items() if name not in known or not isinstance(known[name], kind)]
    if lacking or known is not facts:
        raise RunError(str(file), f"no {', '.join(lacking) or 'object'}", "a run.json as it was written")
    return facts


def newest_run(kind: str, outputs: Path = Path("outputs")) -> Path:
    """The newest complete run of a kind ("encoder", "reranker") under `outputs`; RunError where there is none.

    One whose run.json cannot be read is left out, and said.
    """
    runs = []
    for run in sorted(file.parent for file in outputs.glob("*/run.json")):
        try:
            if read_run(run).get("kind") == kind:
                runs.append(run)
        except RunError as error:
            _say_once(f"note: left out: {error}")
    if not runs:
        raise RunError(f"{outputs}/", f"no complete {kind} run", "one: bash v1.1/scripts/finetune.sh")
    return max(runs, key=lambda run: ((run / "run.json").stat().st_mtime, run.name))


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def model_folder(path: str) -> str:
    """Turn a PATH flag into what can be loaded: a run folder's model/, a model folder, a hub name, or `demo` itself.

    Raises ModelError, with the nearest name, for what is none of these, RunError for a run that did not finish.
    """
    folder, expected = Path(path), "a run folder, model folder, hub name or demo"
    if not path or folder.is_file():
        raise ModelError(path or "the model", "a file" if path else "nothing", expected)
    if (folder / "model").is_dir():
        read_run(folder)
        return str(folder / "model")
    hub = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path) and not (folder.parent != Path() and folder.parent.is_dir())
    if folder.is_dir() or path == "demo" or hub:
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ModelError(path, "a folder without config.json", "a model folder or a complete run folder")
        return path
    raise ModelError(path, "no such folder", expected + nearest_beside(folder))


def model_key(path: str) -> str:
    """What changes when a model is trained anew under the same PATH: sha256 over names, sizes and times of its files.

    A hub name and `demo` stand for themselves. Raises what `model_folder` does.
    """
    name = model_folder(path)
    files = sorted(file for file in Path(name).rglob("*") if file.is_file())
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest() if facts else name
