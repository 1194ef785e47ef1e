"""The folder of a training run: a new one, or the one to resume in; its recipe.yaml, metrics.jsonl and checkpoints."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import yaml
from transformers.trainer_callback import TrainerState

from koir.arguments import TrainingArguments
from koir.errors import RunError
from koir.flags import NOT_OURS
from koir.manifest import write_json, write_text
from koir.yaml_text import read_yaml

SAID = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "warmup_steps", "seed")  # even by default
STATE = "trainer_state.json"  # in a checkpoint: its last file
COUNTERS = "counters.json"  # in a checkpoint: what it began with, and what was counted until it
UNTOUCHED = "the file as training wrote it, or another checkpoint"


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
        found, other = "no complete checkpoint", "the same command without --resume_from_checkpoint"
        if numbered:  # a run that would be refused as unfinished
            found, other = f"{found}: {_what_lacks(numbered[max(numbered)])}", "another --output_dir"
        expected = f"one to resume from, or {other if numbered or args.output_dir else '--output_dir'}"
        raise RunError(f"--resume_from_checkpoint last in {folder}", found, expected)
    _refuse_others(folder, numbered if resume is None else {})
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder), str(newest) if resume else None


def _of_checkpoint(checkpoint: Path, output_dir: str | None) -> str:
    """The folder of a run that goes on from a checkpoint that is named: the checkpoint's own run, or a new one."""
    place = f"--resume_from_checkpoint {checkpoint}"
    if not complete(checkpoint):
        found = "no complete checkpoint"
        if step_of(checkpoint) is not None:
            found += f": {_what_lacks(checkpoint)}"
        of_run = (checkpoint / "checkpoints").is_dir()
        raise RunError(place, found, f"last, beside --output_dir {checkpoint}" if of_run else
                       "a folder with trainer_state.json and all that was written before it")  # fmt: skip
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
        step = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end, and has lost nothing since: without the optimizer's, the schedule's
    or a process's random state it would go on to other weights."""
    return step_of(checkpoint) is not None and not _lacking(checkpoint)


def _lacking(checkpoint: Path) -> list[str]:
    """The files of a checkpoint that are not there."""
    several = any(checkpoint.glob("rng_state_*.pth"))
    files = [f"rng_state_{rank}.pth" for rank in range(_world())] if several else ["rng_state.pth"]
    if not (checkpoint / "latest").is_file():  # DeepSpeed's, which has the others in files of its own
        files += ["optimizer.pt", "scheduler.pt"]
    return [file for file in files if not (checkpoint / file).is_file()]


def _what_lacks(checkpoint: Path) -> str:
    there = len([*checkpoint.glob("rng_state_*.pth")])
    if there and not (checkpoint / f"rng_state_{_world() - 1}.pth").is_file():
        return f"of {checkpoint.name} {there} processes wrote their part, and this is {_world()}"
    return f"{checkpoint.name} lacks {', '.join(_lacking(checkpoint))}"


def read_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state as it was at a checkpoint. Raises RunError for one that was changed since."""
    file = checkpoint / STATE
    try:
        state = TrainerState.load_from_json(str(file))
        numbers = [state.global_step, state.epoch, state.train_batch_size, state.eval_steps]
        numbers += [line["step"] for line in state.log_history]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(str(file), f"something else ({' '.join(str(error).split())[:120]})", UNTOUCHED) from None
    if not all(isinstance(number, int | float) for number in numbers):
        raise RunError(str(file), "a step, epoch or batch that is no number", UNTOUCHED)
    return state


def has_scores(state: TrainerState) -> bool:
    """Whether the dev scores of a state's step are among its lines."""
    lines = [line for line in state.log_history if line["step"] == state.global_step]
    return any(name.startswith("eval_") for line in lines for name in line)


def write_counters(checkpoint: Path, began: dict, counted: dict) -> None:
    """Beside a checkpoint's weights: what the run began with, and what was counted so far."""
    write_json(checkpoint / COUNTERS, {"began": began, "counted": counted})


def read_counters(checkpoint: str, began: dict) -> dict:
    """What was counted until a checkpoint. Raises RunError where it began with other rows, seeds or batches."""
    file = Path(checkpoint) / COUNTERS
    if not file.is_file():  # of a version before there were any
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        before, counted = dict(kept["began"]), dict(kept["counted"])
        counted = {name: value + 0 for name, value in counted.items()}  # numbers all
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(str(file), f"something else ({error})", UNTOUCHED) from None
    for name, value in began.items():
        if (earlier := before.get(name, value)) != value:
            raise RunError(f"--resume_from_checkpoint {checkpoint}", f"{name} {value}", f"{earlier}, as the run began")
    return counted


# What may be moved since, and what has a fingerprint of its own.
FREE = ("model_name_or_path", "guide_model_name_or_path", "train_data", "trust_remote_code")
# Another holds from there on, and is said.
RATES = ("learning_rate", "num_train_epochs", "max_steps", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs",
         "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16", "tf32",
         "dataloader_drop_last")  # fmt: skip


def require_same(checkpoint: Path, folder: Path, groups: dict) -> None:
    """Raise RunError where a run goes on with other flags of its model, rows or loss than its recipe.yaml has, and
    FlagError where that is no recipe any more.

    What it says of itself would be true of neither part. Of a run that goes on in a new folder they are said, and of
    any run other RATES.
    """
    recipe = checkpoint.resolve().parent.parent / "recipe.yaml"
    if not recipe.is_file():
        return
    before = read_yaml(recipe, str(recipe), "the file as the run wrote it")
    if not isinstance(before, dict):
        found = "nothing" if before is None else type(before).__name__
        raise RunError(str(recipe), found, "key: value lines, as the run wrote them")
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
    before = {key: args[key] if key in SAID else getattr(TrainingArguments, key) for key in RATES} | before
    changed |= {key: args[key] for key in RATES if (before[key] or None) != (args[key] or None)}
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
    """Drop the lines that an interrupted run wrote after the checkpoint, without one all; they are written again.

    So are dev scores of its step that it does not know of. Raises RunError for what is no line of a run.
    """
    if not file.exists():
        return
    state = read_state(Path(checkpoint)) if checkpoint else TrainerState(global_step=-1)  # 0 is the base's
    lines, scored = [], has_scores(state)
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        try:
            line = json.loads(text)
        except ValueError:  # a line cut short by the interruption
            continue
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise RunError(f"{file}, line {number}", text.strip()[:80], 'a line of training, with its "step"')
        if line["step"] < state.global_step or (line["step"] == state.global_step and (scored or "loss" in line)):
            lines.append(text)
    write_text(file, "".join(lines))


def remove_half_written(folder: Path) -> None:
    """Remove what killed processes left of a run's weights; only for the process that holds the folder."""
    for half in [*folder.glob(".model.*.partial"), *folder.glob("checkpoints/.checkpoint-*.partial")]:
        shutil.rmtree(half, ignore_errors=True)
