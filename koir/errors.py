"""What a user can do wrong, said in one line: where, what was found, what was expected."""

import atexit
import difflib
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend; never a bug of ours, so it is shown without a traceback.

    place: file and line, flag or field. found: what stood there. expected: what should stand there.
    """

    def __init__(self, place: str, found: str, expected: str):
        super().__init__(place, found, expected)
        self.place, self.found, self.expected = place, found, expected

    def __str__(self) -> str:
        return without_passwords(f"{self.place}: found {self.found}; expected {self.expected}")


class FlagError(UserError):
    """A flag or recipe key is unknown, of the wrong type, or contradicts another."""


class RowError(UserError):
    """A training row, or the file that should hold rows, is not what `triplets.py` accepts."""


class SourceError(UserError):
    """A raw release is missing, incomplete, unsafe to open, or not in the shape that its source reads."""


class TaskError(UserError):
    """An evaluation task is missing, incomplete or inconsistent."""


class ModelError(UserError):
    """A model folder or hub name cannot be loaded, or is of a kind that cannot be trained here."""


class ResultError(UserError):
    """A result file, a published table or a file beside them is broken or incomplete."""


class RunError(UserError):
    """A run folder is missing, incomplete, or would be overwritten."""


def without_passwords(text: str) -> str:
    """A text in which every name and password of a URL (https://name:password@host) is ***."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint "; did you mean X?" for the closest of `known`, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def nearest_beside(path: Path, others: Iterable[str] = ()) -> str:
    """`nearest` for the name of a path that is not there, out of what lies beside it and `others`."""
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, [*beside, *others])


# What the machine refuses, and what would be needed; libraries in other languages pass only the words on.
REFUSALS = {
    errno.ENOSPC: ("no space left on device", "free space, or --output_dir or KOIR_CACHE on another disk"),
    errno.EDQUOT: ("disk quota exceeded", "a larger quota, or --output_dir or KOIR_CACHE on another disk"),
    errno.EACCES: ("permission denied", "a place that may be read and written"),
    errno.EPERM: ("operation not permitted", "a place that may be read and written"),
    errno.EROFS: ("read-only file system", "a place that may be written"),
    errno.EMFILE: ("too many open files", "a higher limit (ulimit -n)"),
    errno.ENFILE: ("too many open files in system", "fewer open files on the machine"),
}
# Of paths, and known by their number alone: such words stand in many an error of ours.
PATHS = {
    errno.EEXIST: ("a file of that name", "a folder, or a name that is free"),
    errno.ENOTDIR: ("a file where the path has a folder", "a folder, or a name that is free"),
    errno.EISDIR: ("a folder", "a file"),
}
# gloo's words and NCCL's for another process that is gone
LOST = r"(?s)gloo.*(Connection (closed|reset) by peer|Timed out waiting)|NCCL communicator was aborted"
# Of torch, oneDNN (whose JIT kernels need memory too) and the threads that they start.
NO_MEMORY = re.compile(
    "out of memory|not enough memory|can(?:'t|not) allocate memory|failed to allocate"
    "|could not (create|execute) a primitive$|can't start new thread",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error))))


def refused_by_machine(error: Exception) -> UserError | None:
    """What the machine refuses or has lost as a UserError: disk, permission, files, memory, another process; else None.

    torch, safetensors and pyarrow raise kinds of their own, so their words and causes are read too.
    """
    if isinstance(error, OSError) and error.errno in REFUSALS | PATHS:
        found, expected = (REFUSALS | PATHS)[error.errno]
        return UserError(str(error.filename or "the disk"), found, expected)
    for found, expected in REFUSALS.values():
        if found in str(error).lower():
            return UserError("the disk", found, expected)
    if os.environ.get("WORLD_SIZE", "1") != "1" and re.search(LOST, str(error)):
        found = "another process that ended or did not answer in time (--ddp_timeout)"
        return UserError(f"rank {os.environ.get('RANK')}", found, "all of them at the same step")
    if out_of_memory(error):
        return UserError("memory", "none left", "a machine with more, or less at once")
    if re.search(r"PytorchStreamWriter failed writing|\d+ requested and \d+ written", str(error)):  # torch, numpy
        return UserError("the disk", "a write that failed", REFUSALS[errno.ENOSPC][1])
    inner = error.__cause__ or error.__context__
    return refused_by_machine(inner) if isinstance(inner, Exception) else None


def end_one_of_several(status: int = 0) -> None:
    """Under torchrun, end this process as sys.exit would, without the interpreter's last steps; alone, do nothing.

    In those, a thread of gloo's that still lets go of a tensor asks for an interpreter that is gone, and the process
    aborts though all its work is done (pytorch/pytorch#179291); not even destroying the group ends the threads.
    """
    if "LOCAL_RANK" in os.environ:  # WORLD_SIZE alone may be a cluster's word to the launcher
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def exit_on_user_error(main: Callable) -> Callable:
    """Decorate a command's `main`: a mistake or a refusal of the machine is one line on stderr and exit status 2.

    Ctrl-C is one line and an end by SIGINT itself: 130 in a shell, whose scripts stop there too and do not take up the
    next command. Of several processes, each ends with the command (`end_one_of_several`).
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # so far, for the libraries' sake: see __init__.py
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            returned = main(*args, **kwargs)
        except SystemExit as ended:
            if isinstance(ended.code, int):
                end_one_of_several(ended.code)
            raise
        except KeyboardInterrupt:
            _ended("stopped by the keyboard", 130)
            sys.excepthook = lambda *_: None  # all is said
            raise
        except Exception as error:
            refusal = error if isinstance(error, UserError) else refused_by_machine(error)
            if refusal is None:
                raise
            raise _ended(f"error: {refusal}", 2) from None
        end_one_of_several()
        return returned

    return wrapped


def _ended(words: str, status: int) -> SystemExit:
    print(words, file=sys.stderr)
    end_one_of_several(status)
    return SystemExit(status)
