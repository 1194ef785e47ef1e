"""Faults on purpose, and what they did: processes killed at random moments, a machine that refuses, lost ranks.

    .venv/bin/python benchmarks/faults.py [--only kill-train kill-data ...] [--kills 20] [--json FILE]

A subject is a command on the bundled demo (benchmarks/subjects.py). It runs once undisturbed; then again and again in a
fresh folder, killed (SIGKILL) at a random moment or while something is being written, and started again with the same
arguments, until it was killed --kills times in all. Whenever it comes to its end, its artefact must equal the
undisturbed one: weights bit for bit, rows, indexes and results byte for byte apart from times. Whatever says that it is
complete while it is not is a loss. `disk`: a full disk, a read-only folder, a missing permission, too few file handles
and too little memory in the middle (needs root). `input` runs the damaged files of tests/fuzz_input.py.
"""

import argparse
import codecs
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ranks
from subjects import ROOT, SUBJECTS, Subject, attempt

from koir.retrieval import dense

dense.SHARD = 32  # texts embedded between two files: the demo's passages make several


def undisturbed(subject: Subject, place: Path) -> tuple[dict[str, str], float]:
    """The artefact of a calm run in place/calm, and the seconds it took."""
    begun, log = time.monotonic(), place / "log.txt"
    status, _ = attempt(subject, place / "calm", log)
    artefact = subject.artefact(place / "calm")
    if status or "nothing" in artefact.values():
        raise SystemExit(f"error: {subject.name} fails undisturbed ({status}):\n{log.read_text()[-2000:]}")
    return artefact, time.monotonic() - begun


def killed_again_and_again(subject: Subject, kills: int, rng: random.Random) -> dict:
    """Kill a command `kills` times; how often it came to its end, and every difference to the undisturbed run."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        log, done, halves, ends, losses = place / "log.txt", 0, 0, 0, []
        wanted, took = undisturbed(subject, place)
        while done < kills or not ends:
            folder = place / f"try-{ends}"
            shutil.rmtree(place / "cache" / "indexes", ignore_errors=True)
            while True:
                delay = rng.uniform(0.02, 0.9) * took if done < kills else None
                status, half = attempt(subject, folder, log, delay, while_writing=done % 2 == 1)
                if status is not None:
                    took *= 0.7 if delay else 1  # it came to its end too soon: a machine is not always as fast
                    break
                done, halves, took = done + 1, halves + half, 1.1 * took
                if (folder / "run.json").exists():  # so it must be whole, and it is not started again
                    status = 0
                    break
            ends += 1
            if status:
                losses.append(f"start after kill {done} ended with {status}: {log.read_text()[-300:]}")
            elif (found := subject.artefact(folder)) != wanted:
                differing = [name for name in wanted | found if wanted.get(name) != found.get(name)]
                losses.append(f"end {ends} after {done} kills: {', '.join(differing[:3])} differ")
            shutil.rmtree(folder, ignore_errors=True)
    counts = {"tried": done, "while writing": halves, "came to its end": ends}
    return {"what": f"kill {subject.name}", **counts, "losses": losses}


# --- what a machine refuses ------------------------------------------------------------------------------------------


def few_handles() -> None:
    """Leave this process one more file to open at a time."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")),) * 2)


def little_memory() -> None:
    """Leave this process 4 MiB more to allocate."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**22,) * 2)


def nobody() -> None:
    """Become a user who may write nothing but the cache."""
    codecs.lookup("utf-8-sig")  # Python itself may lie where nobody may read
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def refused(subject: Subject, how: str, before: Callable[[], None] | None) -> dict:
    """Run a command on a tmpfs that refuses something: one clear line and status 2, and it goes on once that is lifted.

    how: "full disk" (half of what it writes fits), "read-only folder" (in the middle), or what `before` does to it.
    """
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        place.chmod(0o755)
        wanted, took = undisturbed(subject, place)
        small, log = place / "small", place / "log.txt"
        (small / "run").mkdir(parents=True)
        (place / "cache").mkdir(exist_ok=True)
        (place / "cache").chmod(0o777)
        size = max(size_of(place / "calm") // 2, 8192) if how == "full disk" else 2**30
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(small)]
        if subprocess.run(mount, capture_output=True).returncode:
            return {"what": f"{how}: {subject.name}", "tried": 0, "losses": [], "note": "skipped: mounting needs root"}
        try:
            if how == "read-only folder":
                attempt(subject, small / "run", log, 0.6 * took)
                subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
            log.write_text("")
            log.chmod(0o666)
            status, _ = attempt(subject, small / "run", log, before=before or (lambda: None))
            words, losses = log.read_text(), []
            lines = [line for line in words.splitlines() if line.startswith("error: ")]
            through = status == 0 and before is few_handles and subject.artefact(small / "run") == wanted
            if not through and (status != 2 or len(lines) != 1 or "Traceback" in words):
                losses.append(f"status {status}, {words[-400:]}")
            if not through and (small / "run" / "run.json").exists():
                losses.append("it says that it is complete")
            subprocess.run(["mount", "-o", "remount,rw,size=1g", str(small)], check=True)
            status = 0 if through else attempt(subject, small / "run", log)[0]
            if status or subject.artefact(small / "run") != wanted:
                losses.append(f"does not go on ({status}): {log.read_text()[-400:]}")
        finally:
            subprocess.run(["umount", str(small)])
    said = lines[0].replace(str(place), "") if lines else "went through to its end"
    return {"what": f"{how}: {subject.name}", "tried": 1, "losses": losses, "note": said}


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
    """Every refusal with every command that it stands for."""
    v1, cached, reranker, prepare, mine, index, evaluate = (subject for group in SUBJECTS.values() for subject in group)
    writers = [cached, reranker, prepare, mine, index, evaluate]
    for how, before in (("full disk", None), ("read-only folder", None), ("no permission", nobody),
                        ("out of file handles", few_handles)):  # fmt: skip
        yield from (refused(subject, how, before) for subject in writers)
    yield from (refused(subject, "out of memory", little_memory) for subject in (v1, cached, reranker, index))
    yield killed_by_the_kernel()


def run_group(name: str, kills: int, seed: int) -> Iterator[dict]:
    """The table rows of one group, as they are done."""
    if name == "disk":
        yield from refusals()
    elif name == "ranks":
        yield from map(ranks.lost, (signal.SIGKILL, signal.SIGSTOP))
        yield ranks.preempted()
    elif name == "input":
        command = [sys.executable, str(ROOT / "tests" / "fuzz_input.py"), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True)
        yield json.loads(done.stdout.splitlines()[-1]) if done.returncode in (0, 1) else sys.exit(done.stderr)
    else:
        yield from (killed_again_and_again(subject, kills, random.Random(seed)) for subject in SUBJECTS[name])


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 when anything was lost."""
    groups = [*SUBJECTS, "disk", "ranks", "input"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=groups, default=groups)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="rows of an earlier call are kept there, or replaced")
    arguments = parser.parse_args(argv)
    lost = False
    for name in arguments.only:
        for row in run_group(name, arguments.kills, arguments.seed):
            more = "".join(f", {row[name]} {name}" for name in ("while writing", "came to its end") if name in row)
            print(f"{row['what']:<38} {row['tried']:>6,} tried{more}, {len(row['losses'])} lost  {row.get('note', '')}",
                  flush=True)  # fmt: skip
            for loss in row["losses"]:
                print(f"    {loss}")
            lost = lost or bool(row["losses"])
            if arguments.json:
                remember(row, arguments.json)
    return int(lost)


def remember(row: dict, file: Path) -> None:
    """Add a row to a table of JSON, in the place of an earlier one of the same name; at once, for rows take long."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows = [known for known in rows if known["what"] != row["what"]] + [row]
    file.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
