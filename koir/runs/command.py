"""One training run as a command: arguments, folders, resuming, the table of what was gained, run.json."""

import functools
import os
import pickle
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from koir import budget
from koir.arguments import ModelArguments, TrainingArguments
from koir.errors import RunError, out_of_memory
from koir.flags import parse, require
from koir.gather import leave_processes, world_size
from koir.kernels import products
from koir.kernels.bfloat16 import has_bfloat16
from koir.kernels.compiled import compile_layers
from koir.loading import name_accelerator
from koir.manifest import ROOT, alone, origin, peak_memory_bytes, write_json, write_text
from koir.runs.averaging import average
from koir.runs.checks import OVER_SCORES, check, choose_metric, read_tasks
from koir.runs.folder import keep_lines, require_same, run_folder, write_recipe
from koir.runs.interruptions import StopOnBrokenGradient, StopOnSignal, has_checkpoint, smaller_budget, to_resume
from koir.runs.trainer import RunTrainer
from koir.tokens import some_of
from koir.triplets import Triplets, load_triplets, report


@dataclass(frozen=True)
class Kind:
    """What sets the runs of one kind of model apart. `groups` are the argument dataclasses by name."""

    name: str  # `kind` in run.json
    arguments: dict[str, type]  # the dataclasses of flags, by group; some have `check`
    loader: Callable[[ModelArguments], Callable[[], nn.Module]]  # makes what loads the start, each time the same
    load_saved: Callable[..., nn.Module]  # loads a model folder, and with trust_remote_code its own code
    describe: Callable[[nn.Module, dict], list[str]]  # lines to say at the start
    count_cut: Callable[[nn.Module, dict, int], tuple[str, int]]  # what of rows is read at once, how many are longer
    compare: Callable[[Callable[[], nn.Module], dict, Path], dict]  # scores base against tuned and prints the table
    card: Callable[[dict, dict], str]  # the model folder's README
    evaluate_flags: Callable[[dict, Path], list[str]]  # with which evaluate.py scores a run
    prepare: Callable[[nn.Module, Triplets, dict], None]  # what is done to start and groups once the rows are read
    check: Callable[[dict], None] = lambda _: None  # refuses what groups contradict in each other, before all else


def run(
    trainer_class: type[RunTrainer],
    name: str,
    description: str,
    kind: Kind,
    argv: Sequence[str] | None = None,
    step_arguments: type | None = None,
) -> Path:
    """One training run from arguments to run.json; returns the run folder. Everything a trainer does but its step.

    step_arguments: the dataclass of flags that only this trainer's step knows.
    """
    started = time.perf_counter()
    products.keep_few_compiled()
    groups, recipe = _parsed(argv, description, kind, step_arguments)
    args = groups["training"]
    name_accelerator()
    args.output_dir, checkpoint = run_folder(args, f"{name}-{recipe.stem if recipe else 'run'}")
    with alone(Path(args.output_dir), "trains"):
        return _in_folder(trainer_class, name, kind, groups, checkpoint, started)


def _in_folder(
    trainer_class: type[RunTrainer], name: str, kind: Kind, groups: dict, checkpoint: str | None, started: float
) -> Path:
    """What a run does once it has its folder."""
    args = groups["training"]
    folder, main = Path(args.output_dir), args.process_index == 0
    groups["dev_tasks"], groups["held_out"] = read_tasks(groups["evaluation"])
    choose_metric(args, groups["dev_tasks"], groups["held_out"], groups["evaluation"].eval_split)
    if checkpoint:
        require_same(Path(checkpoint), folder, groups)
    load = kind.loader(groups["model"])
    start, triplets = _loaded(kind, load, groups, checkpoint)
    budget.settle(groups, start, folder / "recipe.yaml" if checkpoint else None)
    if args.deepspeed:
        set_hf_deepspeed_config(args.hf_deepspeed_config)
    if main:
        _begin(kind, start, triplets, groups, checkpoint)
    trainer = trainer_class(start, args, triplets, groups)
    trainer.began = _began(args, triplets)
    rows, batch = len(trainer.train_dataset), trainer.began["batch of all processes"]
    whole = rows >= batch or not args.dataloader_drop_last
    require(whole, "--dataloader_drop_last", f"{rows:,} rows, less than a batch of {batch:,}", "at least one batch")
    _train(trainer, checkpoint, folder, groups)
    trainer.save_model(str(folder / "model"))
    facts = {"kind": kind.name, "trainer": name, "base": groups["model"].model_name_or_path, "seed": args.seed}
    facts |= {"train_data": groups["data"].train_data, "data_fingerprint": triplets.fingerprint}
    facts |= {"rows": triplets.counts, **trainer.facts()}
    unset_hf_deepspeed_config()  # what is loaded from here on is one process's, whole
    leave_processes()  # what is left to do is the first one's, and may take longer than the others would wait
    if main:
        _finish(kind, load, groups, facts, started - trainer.earlier_seconds)
    return folder


def _loaded(kind: Kind, load: Callable, groups: dict, checkpoint: str | None) -> tuple[nn.Module, Triplets]:
    """The start, ready to train on its device, and the rows."""
    args = groups["training"]
    unset_hf_deepspeed_config()  # models are small enough to load whole; its engine splits them afterwards
    start = load()
    most = groups["data"].train_max_seq_length or start.max_seq_length
    expected = f"at most the {start.max_seq_length} tokens that the model reads"
    fits = most <= start.max_seq_length or checkpoint is not None  # what a run began with, it goes on with
    require(fits, "--train_max_seq_length", str(most), expected)
    with args.main_process_first(desc="reading rows"):
        triplets = load_triplets(groups["data"].train_data)
    kind.prepare(start, triplets, groups)
    start.to(args.device)
    if getattr(groups.get("step"), "compile", False):
        compile_layers(start.transformer)
    if args.activation_checkpointing:  # as the Trainer will: it decides what a token's graph holds
        start.activation_checkpointing_enable(
            every_n_layers=(args.activation_checkpointing_kwargs or {}).get("every_n_layers", 1)
        )
    return start, triplets


def _begin(kind: Kind, start: nn.Module, triplets: Triplets, groups: dict, checkpoint: str | None) -> None:
    """Say what is trained on what, and write it to the folder."""
    folder = Path(groups["training"].output_dir)
    print(f"rows:    {report(triplets.counts)}", file=sys.stderr)
    lines = kind.describe(start, groups) + _cut_lines(kind, start, triplets, groups) + _budget_lines(groups)
    lines += _known_queries(triplets, groups)
    print("\n".join(lines), file=sys.stderr)
    write_recipe(folder, groups)
    if note := os.environ.get("KOIR_FOLDER"):  # where finetune.sh looks for checkpoints when it has the last word
        Path(note).write_text(str(folder), encoding="utf-8")
    keep_lines(folder / "metrics.jsonl", checkpoint)


def _began(args: TrainingArguments, triplets: Triplets) -> dict:
    """What a checkpoint remembers, since no run can go on with another."""
    began = {
        "--train_data of fingerprint": triplets.fingerprint,
        "--seed": args.seed,
        "--data_seed": args.data_seed,
        "batch of all processes": args.train_batch_size * world_size(),
        "--gradient_accumulation_steps": args.gradient_accumulation_steps,
        "--optim": str(getattr(args.optim, "value", args.optim)),
    }
    if args.deepspeed or args.lr_scheduler_type in OVER_SCORES:  # elsewhere a new one holds from there on
        began["--learning_rate"] = args.learning_rate
    return began


def _finish(kind: Kind, load: Callable, groups: dict, facts: dict, began: float) -> None:
    """Weights averaged, the card, base against tuned, and run.json. began: when, by time.perf_counter."""
    model, folder = groups["model"], Path(groups["training"].output_dir)
    if facts.get("negatives_per_query") == 0:
        print("WARNING: no query had a negative, so nothing was learned (one document in all rows?)", file=sys.stderr)
    saved = functools.partial(kind.load_saved, trust_remote_code=model.trust_remote_code)
    average(load, saved, groups["weights"].tuned_share, folder / "model")
    write_text(folder / "model" / "README.md", kind.card(facts, groups))
    facts["scores"] = kind.compare(load, groups, folder)
    facts |= {"wall_seconds": time.perf_counter() - began, "peak_memory_bytes": peak_memory_bytes()}
    write_json(folder / "run.json", facts | origin())
    here = Path() if Path.cwd() == ROOT else ROOT
    words = [here / ".venv/bin/python", here / "evaluate.py", *kind.evaluate_flags(groups, folder)]
    print(f"\nmodel: {folder / 'model'}\nnext:  {shlex.join(map(str, [*words, *_tasks_flags(groups)]))}")


def _tasks_flags(groups: dict) -> list[str]:
    """The flags of evaluate.py for what the last table was of; where that is of several splits, for those of test."""
    tasks, splits = groups["evaluation"].eval_tasks, [task.split for task in groups["held_out"]]
    if len(set(splits)) > 1:
        tasks, splits = [path for path, split in zip(tasks, splits, strict=True) if split == "test"], ["test"]
    split = ["--split", splits[0]] if splits and splits[0] != "test" else []
    return ["--tasks", *tasks, *split] if tasks else []


def _train(trainer: RunTrainer, checkpoint: str | None, folder: Path, groups: dict) -> None:
    """Train; a signal ends it with a checkpoint and status 143, a lack of memory with the budget to resume with."""
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.add_callback(StopOnBrokenGradient(lambda: trainer.deepspeed))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        if trainer.args.process_index == 0 and has_checkpoint(folder):
            print(f"\n{to_resume(folder)}", file=sys.stderr)
        raise
    except pickle.UnpicklingError:
        found = "a pickle that holds more than numbers, which is never loaded"
        raise RunError(f"--resume_from_checkpoint {checkpoint}", found, "a checkpoint that training wrote") from None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if "step" not in groups:
            found = f"none left with --per_device_train_batch_size {trainer.args.per_device_train_batch_size}"
            expected = "a smaller one, or v1.1, which holds the graph of a chunk in place of the batch's"
            raise RunError("memory", found, expected) from None
        keep = min(groups["step"].cache_keep_tokens, trainer.largest_batch)  # no more is ever kept
        longest = groups["model"].max_seq_length or 512
        raise smaller_budget(folder, int(groups["chunks"].chunk_tokens), keep, longest) from None
    except Exception as error:
        library, found = type(error).__module__.partition(".")[0], " ".join(str(error).split())[:200]
        if library == "wandb":
            raise RunError("--report_to wandb", found, "WANDB_API_KEY, `wandb login`, or WANDB_MODE=offline") from None
        if library == "pydantic_core" and trainer.args.deepspeed:
            raise RunError("--deepspeed", found, "values that DeepSpeed knows") from None
        raise
    stop.exit_if_signalled(folder)


def _parsed(
    argv: Sequence[str] | None, description: str, kind: Kind, step_arguments: type | None
) -> tuple[dict, Path | None]:
    kinds = kind.arguments | {"training": TrainingArguments}
    if step_arguments:
        kinds["step"] = step_arguments
    *instances, recipe = parse(list(kinds.values()), argv, description)
    groups = dict(zip(kinds, instances, strict=True))
    check(groups)
    kind.check(groups)
    return groups, recipe


def _cut_lines(kind: Kind, start: nn.Module, triplets: Triplets, groups: dict) -> list[str]:
    """How many of some rows training does not read to the end, where there are any."""
    most = groups["data"].train_max_seq_length or start.max_seq_length
    rows = some_of(triplets.pairs)
    what, longer = kind.count_cut(start, rows, most)
    line = f"cut:     {longer:,} of {len(rows['query']):,} {what} looked at have more than {most:,} tokens"
    return [line] if longer else []


def _known_queries(triplets: Triplets, groups: dict) -> list[str]:
    """A line for each task whose queries are among the rows: its scores would say how well they were learned."""
    tasks = {(task.name, task.split): set(task.queries.values()) for task in groups["dev_tasks"] + groups["held_out"]}
    asked = set().union(*tasks.values())
    met = set()
    for batch in triplets.pairs.select_columns("query").iter(10_000) if asked else ():
        met |= asked.intersection(batch["query"])
    return [
        f"WARNING: {len(met & queries):,} of the {len(queries):,} queries of {name}, {split} are among the rows: its "
        "scores will say too much; prepare_data.py --exclude_tasks (--exclude_by queries) leaves such rows out"
        for (name, split), queries in tasks.items()
        if met & queries
    ]


def _budget_lines(groups: dict) -> list[str]:
    kept = getattr(groups.get("step"), "cache_keep_tokens", None)
    keep = "" if kept is None else f", graphs of at most {kept:,} tokens kept"
    lines = [f"chunks:  at most {groups['chunks'].chunk_tokens:,} padded tokens{keep}"]
    args = groups["training"]
    if args.gradient_accumulation_steps > 1:
        lines.append(f"         a step adds up {args.gradient_accumulation_steps} such batches")
    if args.device.type == "cpu" and has_bfloat16(args.device) and not args.bf16:
        lines.append("note:    this processor multiplies bfloat16 natively; --bf16 --use_cpu is faster, and less exact")
    return lines
