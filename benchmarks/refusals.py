"""What a machine refuses while a command runs: room on the disk, writing, permission, file handles, memory.

Each fault comes in the middle: once the command has written its first checkpoint, part or result. It must end with one
line and status 2, must not say that it is complete, must leave its newest checkpoint as it was, and must go on to the
undisturbed artefact once the fault is lifted.
"""

import codecs
import contextlib
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from subjects import ROOT, SUBJECTS, Subject, attempt, undisturbed

from koir.runs.folder import complete

TAKEN = []  # by `starve`


def stop(child: int) -> None:
    """Hold a process, and wait until it is held or ended."""
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


def read_only(child: int, small: Path) -> None:
    """Mount a tmpfs anew, read-only; later where a file is just open for writing."""
    while subprocess.run(["mount", "-o", "remount,ro", str(small)], capture_output=True).returncode:
        os.kill(child, signal.SIGCONT)
        time.sleep(0.001)
        stop(child)


def of_root(child: int, small: Path) -> None:
    """Give every file to root: the process, which is `nobody`, may read them."""
    subprocess.run(["chown", "-R", "0:0", str(small)], check=True)


def no_handles(child: int, small: Path) -> None:
    """No further file can be opened, whatever is closed."""
    resource.prlimit(child, resource.RLIMIT_NOFILE, (3, 3))


def no_memory(child: int, small: Path) -> None:
    """The process does `starve` as soon as it goes on."""
    os.kill(child, signal.SIGUSR1)


def nobody() -> None:
    """Become a user without rights."""
    for name in ("utf-8-sig", "utf-32-le"):  # Python itself may lie where nobody may read
        codecs.lookup(name)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def starve(*_) -> None:
    """Get no page more from here on, and take what lies free in pieces of 64 KiB and larger, but for 4 MiB."""
    resource.setrlimit(resource.RLIMIT_AS, (1, 1))
    with contextlib.suppress(MemoryError):
        while True:
            TAKEN.append(bytearray(2**16))
    del TAKEN[-64:]


# what the parent does in the middle, and what the command's process does at its start
FAULTS = {
    "full disk": (lambda child, small: None, lambda: None),  # it holds half of what the command writes
    "read-only folder": (read_only, lambda: None),
    "no permission": (of_root, nobody),
    "out of file handles": (no_handles, lambda: None),
    "out of memory": (no_memory, lambda: signal.signal(signal.SIGUSR1, starve)),
}


def checkpoints(folder: Path) -> dict[int, dict[str, str]]:
    """Step -> file -> sha256 of every complete checkpoint."""
    whole = {int(place.name.rpartition("-")[2]): place for place in folder.glob("checkpoints/*") if complete(place)}
    files = {step: sorted(file for file in place.rglob("*") if file.is_file()) for step, place in whole.items()}
    return {
        step: {str(file.relative_to(whole[step])): hashlib.sha256(file.read_bytes()).hexdigest() for file in of_one}
        for step, of_one in files.items()
    }


def refused(subject: Subject, how: str, wanted: dict[str, str], size: int) -> dict:
    """Run a command on a tmpfs with a fault of FAULTS in the middle, and once more without.

    wanted: its undisturbed artefact. size: bytes that it writes.
    """
    row = {"what": f"{how}: {subject.name}", "tried": 1}
    fault, before = FAULTS[how]
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        place.chmod(0o755)
        small, log, noted, losses = place / "small", place / "log.txt", [], []
        folder = small / "run"
        for made in (small, place / "cache"):
            made.mkdir()
            made.chmod(0o777)
        room = max(size // 2, 8192) if how == "full disk" else 2**30
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room},mode=777", "none", str(small)]
        if subprocess.run(mount, capture_output=True).returncode:
            return row | {"tried": 0, "losses": [], "note": "skipped: mounting needs root"}

        def watch(child: int) -> None:
            if not noted and any(folder.glob(subject.middle)):
                stop(child)
                noted.append(checkpoints(folder))
                fault(child, small)
                os.kill(child, signal.SIGCONT)

        try:
            status, _ = attempt(subject, folder, log, before=before, watch=watch)
            words, after = log.read_text(), checkpoints(folder)
            lines = [line for line in words.splitlines() if line.startswith("error: ")]
            through = status == 0 and how == "out of memory" and subject.artefact(folder) == wanted
            if not through and (status != 2 or len(lines) != 1 or "Traceback" in words):
                losses.append(f"status {status}, {words[-400:]}")
            if not through and (folder / "run.json").exists():
                losses.append("it says that it is complete")
            if not noted:
                losses.append("its middle was never reached")
            for step, files in noted[0].items() if noted and not through else ():
                if after.get(step) != files:
                    losses.append(f"checkpoint-{step} is not as it was")
            if noted and not noted[0] and subject.middle.startswith("checkpoints"):
                losses.append("no checkpoint was there to lose")
            subprocess.run(["mount", "-o", "remount,rw,size=1g", str(small)], check=True)
            status = 0 if through else attempt(subject, folder, log)[0]
            if status or subject.artefact(folder) != wanted:
                losses.append(f"does not go on ({status}): {log.read_text()[-400:]}")
        finally:
            subprocess.run(["umount", str(small)])
    said = "went through to its end" if through else lines[0].replace(str(place), "") if lines else ""
    return row | {"losses": losses, "note": said}


def killed_by_the_kernel() -> dict:
    """Let another program take a training's memory (a cgroup): finetune.sh's words; it resumes to the same weights."""
    subject, group = SUBJECTS["kill-train"][1], Path("/sys/fs/cgroup/memory/koir-faults")
    what = f"out of memory, killed by the kernel: {subject.name}"
    try:
        group.mkdir()
    except OSError:
        return {"what": what, "tried": 0, "losses": [], "note": "skipped: needs root and a memory cgroup (version 1)"}
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        wanted, _ = undisturbed(subject, place)
        folder, log = place / "run", place / "log.txt"
        words = [sys.executable, str(ROOT / subject.script), *subject.arguments(folder)]
        script = f'echo $$ > {group}/cgroup.procs; source {ROOT}/scripts/launch.sh; run_to_the_end "" "$@"'
        with log.open("w") as out:
            job = subprocess.Popen(["bash", "-c", script, "bash", *words], stdout=out, stderr=out,
                                   env=os.environ | {"KOIR_CACHE": str(place / "cache")})  # fmt: skip
        while job.poll() is None and not any(folder.glob("checkpoints/*/trainer_state.json")):
            time.sleep(0.01)
        used = int((group / "memory.usage_in_bytes").read_text())
        (group / "memory.limit_in_bytes").write_text(str(used + 2**24))
        greedy = f"echo $$ > {group}/cgroup.procs; head -c {2**27} /dev/zero | tail"  # which keeps an endless line
        subprocess.run(["bash", "-c", greedy], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        job.wait()
        said, losses = log.read_text(), []
        if job.returncode != 137 or "memory ran out" not in said:
            losses.append(f"status {job.returncode}: {said[-300:]}")
        status, _ = attempt(subject, folder, log)
        if status or subject.artefact(folder) != wanted:
            losses.append(f"does not resume ({status}): {log.read_text()[-300:]}")
    group.rmdir()
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return {"what": what, "tried": 1, "losses": losses, "note": lines[0] if lines else ""}


def refusals() -> Iterator[dict]:
    """Every fault in the middle of every command."""
    for subject in (subject for group in SUBJECTS.values() for subject in group):
        with tempfile.TemporaryDirectory() as place:
            place = Path(place)
            wanted, _ = undisturbed(subject, place)
            size = sum(file.stat().st_size for file in (place / "calm").rglob("*") if file.is_file())
        yield from (refused(subject, how, wanted, size) for how in FAULTS)
    yield killed_by_the_kernel()
