"""The folder of a training run: a new one, or the one to resume in; its recipe.yaml, metrics.jsonl and checkpoints."""

import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import yaml

from koir.arguments import TrainingArguments
from koir.errors import RunError
from koir.flags import NOT_OURS
from koir.manifest import write_json, write_text

SAID = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "warmup_steps", "seed")  # even by default
COUNTERS = "counters.json"  # in a checkpoint: what it began with, and what was counted until it


def run_folder(args: TrainingArguments, name: str) -> tuple[str, str | None]:
    """The run folder and the checkpoint to resume from. Raises RunError rather than mix two runs in one folder.

    `last` without --output_dir is the newest unfinished run of that name.
    """
    resume = args.resume_from_checkpoint
    if resume and resume != "last":
        return _of_checkpoint(Path(resume), args.output_dir), resume
    stamp = os.environ.get("KOIR_STARTED") or time.strftime("%Y%m%d-%H%M%S")
    folder = Path(args.output_dir or f"outputs/{name}-{stamp}")
    if resume == "last" and not args.output_dir:
        named = re.compile(re.escape(name) + r"-\d{8}-\d{6}")
        runs = [run for run in Path("outputs").glob("*") if named.fullmatch(run.name) and _unfinished(run)]
        folder = max(runs, default=folder)
    numbered = _numbered(folder)
    whole = {number: checkpoint for number, checkpoint in numbered.items() if complete(checkpoint)}
    newest = whole[max(whole)] if whole else None
    _refuse_complete(folder)
    if resume == "last" and newest is None:
        found = "no complete checkpoint"
        if numbered:
            there = len([*numbered[max(numbered)].glob("rng_state_*.pth")])
            found += f": of {numbered[max(numbered)].name} {there} processes wrote their part, and this is {_world()}"
        expected = "one to resume from, or the same command without --resume_from_checkpoint"
        raise RunError(f"--resume_from_checkpoint last in {folder}", found, expected if args.output_dir else
                       "one to resume from, or --output_dir")  # fmt: skip
    _refuse_others(folder, numbered if resume is None else {})
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder), str(newest) if resume else None


def _of_checkpoint(checkpoint: Path, output_dir: str | None) -> str:
    """The folder of a run that goes on from a checkpoint that is named: the checkpoint's own run, or a new one."""
    place = f"--resume_from_checkpoint {checkpoint}"
    if not complete(checkpoint):
        raise RunError(place, "no complete checkpoint", "a folder with trainer_state.json")
    beside = checkpoint.resolve().parent
    own = beside.parent if beside.name == "checkpoints" else None
    if output_dir is None and own is None:
        raise RunError(place, f"no run's checkpoints/ folder around it, but {beside}", "--output_dir too")
    folder = Path(output_dir or own)
    _refuse_complete(folder)
    if own is None or folder.resolve() != own:
        _refuse_others(folder, _numbered(folder))
        folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _refuse_others(folder: Path, numbered: dict[int, Path]) -> None:
    """numbered: the folder's checkpoints by step, where they are another run's."""
    if numbered:
        found = f"an unfinished run ({numbered[max(numbered)].name})"
        raise RunError(f"--output_dir {folder}", found, "--resume_from_checkpoint last, or another folder")
    if (folder / "model").exists() and not (folder / "recipe.yaml").is_file():
        raise RunError(f"--output_dir {folder}", "a model/ folder that no run wrote", "another folder")


def set_aside_later(checkpoint: Path, folder: Path) -> None:
    """Rename a run's checkpoints of later steps than the one it goes on from: `last` would take them for its newest."""
    if checkpoint.resolve().parent != (folder / "checkpoints").resolve():
        return
    step, stamp = step_of(checkpoint), time.strftime("%Y%m%d-%H%M%S")
    for number, later in _numbered(folder).items():
        if number > step:
            kept = later.rename(later.with_name(f"left-{stamp}-{later.name}"))
            print(f"note: {later.name} is of a later step; it is kept as {kept}", file=sys.stderr)


def _numbered(folder: Path) -> dict[int, Path]:
    """A run's checkpoints by step, without those whose last file is not whole."""
    named = [c for c in (folder / "checkpoints").glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", c.name)]
    return {int(c.name.partition("-")[2]): c for c in named if step_of(c) is not None}


def _unfinished(folder: Path) -> bool:
    return not (folder / "run.json").exists() and bool(_numbered(folder))


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def step_of(checkpoint: Path) -> int | None:
    """The step after which a checkpoint was written; None where its last file is not whole."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: its last file is whole, and no process's random state is missing."""
    ranks = range(_world() if (checkpoint / "rng_state_0.pth").exists() else 0)
    missing = [rank for rank in ranks if not (checkpoint / f"rng_state_{rank}.pth").exists()]
    return step_of(checkpoint) is not None and not missing


def write_counters(checkpoint: Path, began: dict, counted: dict) -> None:
    """Beside a checkpoint's weights: what the run began with, and what was counted so far."""
    write_json(checkpoint / COUNTERS, {"began": began, "counted": counted})


def read_counters(checkpoint: str, began: dict) -> dict:
    """What was counted until a checkpoint. Raises RunError where it began with other rows, seeds or batches."""
    file = Path(checkpoint) / COUNTERS
    if not file.is_file():  # of a version before there were any
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    for name, value in began.items():
        if (before := kept["began"].get(name, value)) != value:
            raise RunError(f"--resume_from_checkpoint {checkpoint}", f"{name} {value}", f"{before}, as the run began")
    return kept["counted"]


# What may be moved since, and what has a fingerprint of its own.
FREE = ("model_name_or_path", "guide_model_name_or_path", "train_data", "trust_remote_code")
RATES = ("learning_rate", "num_train_epochs", "warmup_steps")  # another holds from there on, and is said


def require_same(checkpoint: Path, folder: Path, groups: dict) -> None:
    """Raise RunError where a run goes on with other flags of its model, rows or loss than its recipe.yaml has.

    What it says of itself would be true of neither part. Of a run that goes on in a new folder they are said, and of
    any run other RATES.
    """
    recipe = checkpoint.resolve().parent.parent / "recipe.yaml"
    if not recipe.is_file():
        return
    before = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    parts, args = [groups[name] for name in ("model", "data", "loss", "weights")], groups["training"].to_dict()
    now = yaml.safe_load(yaml.safe_dump({key: value for part in parts for key, value in vars(part).items()}))
    usual = {key: value for part in parts for key, value in vars(type(part)()).items()}

    def is_kept(key: str) -> bool:
        if key not in before:  # it was None, or no flag yet
            return now[key] in (None, usual[key])
        return _unmoved(before[key]) == _unmoved(now[key])

    changed = {key: value for key, value in now.items() if key not in FREE and not is_kept(key)}
    if changed and recipe.parent == folder.resolve():
        raise RunError(f"--resume_from_checkpoint {checkpoint}", _flags(changed, changed),
                       f"{_flags(changed, before)}, as the run began")  # fmt: skip
    changed |= {key: args[key] for key in RATES if before.get(key, args[key]) != args[key]}
    if changed and groups["training"].process_index == 0:
        began = f"{checkpoint} was trained with {_flags(changed, before)}"
        print(f"note: {_flags(changed, changed)} from here on; {began}", file=sys.stderr)


def _flags(names: Iterable[str], values: dict) -> str:
    return ", ".join(f"--{name} {_said(values.get(name))}" for name in names)


def _unmoved(value: object) -> object:
    """A first stage's kind alone; any other value as it is."""
    staged = isinstance(value, str) and value.startswith(("dense:", "hybrid:", "milvus:"))
    return value.partition(":")[0] if staged else value


def _said(value: object) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value).lower()


def _refuse_complete(folder: Path) -> None:
    if (folder / "run.json").is_file():
        raise RunError(f"--output_dir {folder}", "a complete run", "another folder; a run is never overwritten")


def write_recipe(folder: Path, groups: dict) -> None:
    """recipe.yaml: every value that was in force, so that the run can be repeated by naming it."""
    keys = {}
    for name in [name for name in groups if name not in ("training", "dev_tasks", "held_out", "guide")]:
        keys |= vars(groups[name])
    args = groups["training"]  # making others sets up the processes anew, so these must be on the same devices
    defaults = TrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict() | {"use_cpu": False}
    for key, value in args.to_dict().items():
        if key in NOT_OURS or key == "resume_from_checkpoint":
            continue
        if key in SAID or value != defaults.get(key):
            keys[key] = value
    text = yaml.safe_dump({k: v for k, v in keys.items() if v is not None}, allow_unicode=True, sort_keys=False)
    write_text(folder / "recipe.yaml", text)


def keep_lines(file: Path, checkpoint: str | None) -> None:
    """Drop the lines that an interrupted run wrote after the checkpoint, without one all; they are written again."""
    if not file.exists():
        return
    step = step_of(Path(checkpoint)) if checkpoint else -1  # 0 is the base's
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except ValueError:  # a line cut short by the interruption
            continue
    write_text(file, "".join(lines))
