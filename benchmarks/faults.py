"""Faults on purpose, and what they did: processes killed at random moments, a machine that refuses, lost ranks.

    .venv/bin/python benchmarks/faults.py [--only kill-train kill-data ...] [--kills 20] [--json FILE]

A subject is a command on the bundled demo (benchmarks/subjects.py). It runs once undisturbed; then again and again in a
fresh folder, killed (SIGKILL) at a random moment or while something is being written, and started again with the same
arguments, until it was killed --kills times in all. Whenever it comes to its end, its artefact must equal the
undisturbed one: weights bit for bit, rows, indexes and results byte for byte apart from times. Whatever says that it is
complete while it is not is a loss. `disk`: a full disk, a read-only folder, a missing permission, no file handle and no
memory in the middle (benchmarks/refusals.py; needs root). `input` runs the damaged files of tests/fuzz_input.py.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ranks
from refusals import refusals
from subjects import ROOT, SUBJECTS, Subject, attempt, undisturbed

from koir.manifest import origin, write_json
from koir.retrieval import dense

dense.SHARD = 32  # texts embedded between two files: the demo's passages make several


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
    """Add a row to a table of JSON, in the place of an earlier one of the same name; at once, for rows take long.

    Beside the rows: origin, the machine and versions of the newest row.
    """
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = [known for known in rows if known["what"] != row["what"]] + [row]
    write_json(file, {"origin": origin(), "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
