"""The folder of a training run: a new one, or the one to resume in; recipe.yaml and metrics.jsonl in it."""

import json
import os
import time
from pathlib import Path

import yaml

from koir import arguments
from koir.arguments import TrainingArguments
from koir.errors import RunError
from koir.manifest import written_aside


def run_folder(args: TrainingArguments, name: str) -> tuple[str, str | None]:
    """The run folder and the checkpoint to resume from; refuses to mix two runs in one folder."""
    resume = args.resume_from_checkpoint
    if resume and resume != "last":
        checkpoint = Path(resume)
        if not complete(checkpoint):
            raise RunError(
                f"--resume_from_checkpoint {resume}", "no complete checkpoint", "a folder with trainer_state.json"
            )
        folder = Path(args.output_dir or checkpoint.resolve().parents[1])
        _refuse_complete(folder)
        return str(folder), resume
    stamp = os.environ.get("KOIR_STARTED") or time.strftime("%Y%m%d-%H%M%S")
    folder = Path(args.output_dir or f"outputs/{name}-{stamp}")
    whole = [checkpoint for checkpoint in (folder / "checkpoints").glob("checkpoint-*") if complete(checkpoint)]
    newest = max(whole, key=lambda c: int(c.name.rpartition("-")[2]), default=None)
    _refuse_complete(folder)
    if resume == "last" and newest is None:
        raise RunError(f"--resume_from_checkpoint last in {folder}", "no complete checkpoint", "one to resume from")
    if resume is None and newest is not None:
        raise RunError(f"--output_dir {folder}", f"an unfinished run ({newest.name})", "--resume_from_checkpoint last")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder), str(newest) if resume else None


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: its last file is whole, and no process's random state is missing."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    several = (checkpoint / "rng_state_0.pth").exists()
    ranks = range(int(os.environ.get("WORLD_SIZE", 1)) if several else 0)
    return all((checkpoint / f"rng_state_{rank}.pth").exists() for rank in ranks)


def _refuse_complete(folder: Path) -> None:
    if (folder / "run.json").is_file():
        raise RunError(f"--output_dir {folder}", "a complete run", "another folder; a run is never overwritten")


def write_recipe(folder: Path, groups: dict) -> None:
    """recipe.yaml: every value that was in force, so that the run can be repeated by naming it."""
    keys = {}
    for name in [name for name in groups if name not in ("training", "dev_tasks", "guide")]:
        keys |= vars(groups[name])
    args = groups["training"]  # making others sets up the processes anew, so these must be on the same devices
    defaults = TrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict() | {"use_cpu": False}
    for key, value in args.to_dict().items():
        if key not in arguments.NOT_OURS and value != defaults.get(key) and key != "resume_from_checkpoint":
            keys[key] = value
    text = yaml.safe_dump({k: v for k, v in keys.items() if v is not None}, allow_unicode=True, sort_keys=False)
    with written_aside(folder / "recipe.yaml") as aside:
        aside.write_text(text, encoding="utf-8")


def keep_lines(file: Path, checkpoint: str | None) -> None:
    """Drop the lines that an interrupted run wrote after the checkpoint, without one all; they are written again."""
    if not file.exists():
        return
    step = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else -1  # 0 is the base's
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except ValueError:  # a line cut short by the interruption
            continue
    with written_aside(file) as aside:
        aside.write_text("".join(lines), encoding="utf-8")
