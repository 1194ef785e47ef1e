"""Errors that are the user's or the machine's are one line; ours keep their traceback."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from koir.errors import UserError, exit_on_user_error, out_of_memory, refused_by_machine

ROOT = Path(__file__).resolve().parents[1]


def failing(error, cause=None):
    @exit_on_user_error
    def main():
        raise error from cause

    return main


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/모델/model"), "/모델/model: found no space"),
        (OSError(errno.EDQUOT, "quota", "x"), "x: found disk quota exceeded; expected a larger quota, or --out"),
        (RuntimeError("no space left on device"), "the disk: found no space left on device; expected free space, or "
         "--output_dir or KOIR_CACHE on another disk\n"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: found permission denied; expected a place"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "out: found read-only file system"),
        (OSError(errno.EMFILE, "Too many open files"), "the disk: found too many open files; expected a higher limit"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk: found no space left on device"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3"), "the disk: found a write"),
        (OSError("8192 requested and 8160 written"), "the disk: found a write that failed; expected free space"),
        (MemoryError(), "memory: found none left"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory: found none left"),
        (RuntimeError("could not create a primitive"), "memory: found none left"),
        (RuntimeError("can't start new thread"), "memory: found none left"),
        (UserError("file, line 3", "nothing", "a text"), "file, line 3: found nothing; expected a text"),
    ],
)  # fmt: skip
def test_one_line_and_status_2(error, words, capsys):
    with pytest.raises(SystemExit) as left:
        failing(error)()
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.startswith(f"error: {words}") and told.count("\n") == 1


def test_a_refusal_behind_another_error_is_found():
    try:
        raise ValueError("could not save") from OSError(errno.ENOSPC, "No space left on device", "x")
    except ValueError as error:
        assert refused_by_machine(error).found == "no space left on device"


def test_what_counts_as_out_of_memory():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    assert not out_of_memory(ValueError("out of memory"))


INTERRUPTED = r"""
import sys, time
sys.path.insert(0, sys.argv[1])
import koir
from koir.errors import exit_on_user_error

def wait():
    print("up", "\udcc0", "가", flush=True)
    time.sleep(60)

if sys.argv[2] == "imports":
    try:
        wait()
    except BaseException:
        raise ImportError("a library's") from None
exit_on_user_error(wait)()
"""


@pytest.mark.parametrize(("when", "said"), [("imports", ""), ("main", "stopped by the keyboard\n")])
def test_ctrl_c_is_one_line_at_most_and_ends_by_the_signal(when, said, tmp_path):
    for name in ("koir/__init__.py", "koir/errors.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "evaluate.py").write_text(INTERRUPTED)
    words = ["env", "--default-signal=INT", sys.executable, tmp_path / "evaluate.py", tmp_path, when]
    ascii_alone = os.environ | {"PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(words, stdout=-1, stderr=-1, text=True, env=ascii_alone) as process:
        assert process.stdout.readline() == "up \\udcc0 \\uac00\n", "what cannot be shown ends no command"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == said
    assert process.returncode == -signal.SIGINT, "130 in a shell, whose script does not go on"


def test_our_own_defects_keep_their_traceback():
    with pytest.raises(ValueError, match="a defect"):
        failing(ValueError("a defect"))()


def test_words_of_paths_hide_no_error_of_ours(tmp_path):
    assert refused_by_machine(ValueError("this is a folder of a file of that name")) is None
    with pytest.raises(IsADirectoryError) as refused:
        tmp_path.open()
    assert str(refused_by_machine(refused.value)) == f"{tmp_path}: found a folder; expected a file"


ONE_OF_TWO = """
import atexit, sys
from koir.errors import UserError, exit_on_user_error

class Group:
    def __del__(self):
        print("last steps")

held = Group()
atexit.register(print, "at exit")

@exit_on_user_error
def main():
    print("done", end=" ")
    {end}

main()
"""


@pytest.mark.parametrize(
    ("end", "status"), [("pass", 0), ("sys.exit(143)", 143), ("raise UserError('a', 'b', 'c')", 2)]
)
@pytest.mark.parametrize("by_torchrun", [False, True])
def test_one_process_of_several_skips_the_interpreters_last_steps(end, status, by_torchrun):
    command = [sys.executable, "-c", ONE_OF_TWO.format(end=end)]
    place = os.environ | {"WORLD_SIZE": "2"} | ({"LOCAL_RANK": "1"} if by_torchrun else {})
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=place)
    assert ended.returncode == status and "Traceback" not in ended.stderr
    assert ended.stdout == "done at exit\n" + "last steps\n" * (not by_torchrun)
