"""One training run as a command: arguments, folders, resuming, the table of what was gained, run.json."""

import functools
import math
import os
import pickle
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from koir import arguments, budget, products
from koir.arguments import TrainingArguments, require
from koir.averaging import average
from koir.bfloat16 import has_bfloat16
from koir.compiled import compile_layers
from koir.errors import RunError, nearest, out_of_memory
from koir.evaluation.tasks import Task, load_splits, splits
from koir.gather import leave_processes, world_size
from koir.interruptions import StopOnBrokenGradient, StopOnSignal, smaller_budget
from koir.manifest import origin, peak_memory_bytes, write_json
from koir.run_folder import alone, keep_lines, run_folder, write_recipe
from koir.tokens import some_of
from koir.trainer import RunTrainer
from koir.triplets import Triplets, load_triplets, report

RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "gradient_accumulation_steps": (lambda n: n >= 1, "1 or more"),
    "learning_rate": (lambda x: 0 < x < math.inf, "above 0"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "0 or more"),
    "max_grad_norm": (lambda x: 0 <= x < math.inf, "0 (none) or more"),
    "adam_beta1": (lambda x: 0 <= x < 1, "0 or more, below 1"),
    "adam_beta2": (lambda x: 0 <= x < 1, "0 or more, below 1"),
    "adam_epsilon": (lambda x: 0 <= x < math.inf, "0 or more"),
    "num_train_epochs": (lambda x: 0 < x < math.inf, "above 0"),
    "max_steps": (lambda n: n != 0, "1 or more, or -1: by --num_train_epochs"),
    "eval_steps": (lambda n: n > 0, "above 0"),
    "save_steps": (lambda n: n > 0, "above 0"),
    "logging_steps": (lambda n: n > 0, "above 0"),
    "dataloader_num_workers": (lambda n: n >= 0, "0 (none) or more"),
    "seed": (lambda n: 0 <= n < 2**32, "0 to 4,294,967,295"),
    "data_seed": (lambda n: 0 <= n < 2**32, "0 to 4,294,967,295"),
}


OVER_SCORES = ("reduce_lr_on_plateau", "greedy")  # schedules that the dev scores drive


@dataclass(frozen=True)
class Kind:
    """What sets the runs of one kind of model apart. `groups` are the argument dataclasses by name.

    name: `kind` in run.json. arguments: the dataclasses of flags, by group; some have `check`. loader: what loads the
    start, each time the same. saved: loads a model folder, and with trust_remote_code its own code. describe: lines to
    say at the start. longer: what of rows is read at once, and how many of them have more tokens than so many.
    compare: scores base against tuned and prints the table. card: the model folder's README. next: the command to go on
    with. prepare: what is done to the start and to the groups once the rows are read.
    """

    name: str
    arguments: dict[str, type]
    loader: Callable[[arguments.ModelArguments], Callable[[], nn.Module]]
    saved: Callable[..., nn.Module]
    describe: Callable[[nn.Module, dict], list[str]]
    longer: Callable[[nn.Module, dict, int], tuple[str, int]]
    compare: Callable[[Callable[[], nn.Module], dict, Path], dict]
    card: Callable[[dict, dict], str]
    next: str
    prepare: Callable[[nn.Module, Triplets, dict], None] = lambda *_: None


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
    transformers.utils.logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to find out
    args.output_dir, checkpoint = run_folder(args, f"{name}-{recipe.stem if recipe else 'run'}")
    with alone(Path(args.output_dir)):
        return _in_folder(trainer_class, name, kind, groups, checkpoint, started)


def _in_folder(
    trainer_class: type[RunTrainer], name: str, kind: Kind, groups: dict, checkpoint: str | None, started: float
) -> Path:
    """What a run does once it has its folder."""
    args, model = groups["training"], groups["model"]
    folder, main = Path(args.output_dir), args.process_index == 0
    groups["dev_tasks"], groups["held_out"] = _tasks(groups["evaluation"])
    _choose_metric(args, groups["dev_tasks"])
    load = kind.loader(model)
    unset_hf_deepspeed_config()  # models are small enough to load whole; its engine splits them afterwards
    start = load()
    with args.main_process_first(desc="reading rows"):
        triplets = load_triplets(groups["data"].train_data)
    kind.prepare(start, triplets, groups)
    start.to(args.device)
    if getattr(groups.get("step"), "compile", False):
        compile_layers(start.transformer)
    budget.settle(groups, start, folder / "recipe.yaml" if checkpoint else None)
    if args.deepspeed:
        set_hf_deepspeed_config(args.hf_deepspeed_config)
    if main:
        print(f"rows:    {report(triplets.counts)}", file=sys.stderr)
        lines = kind.describe(start, groups) + _cut_lines(kind, start, triplets, groups) + _budget_lines(groups)
        print("\n".join(lines), file=sys.stderr)
        write_recipe(folder, groups)
        if note := os.environ.get("KOIR_FOLDER"):  # where finetune.sh looks for checkpoints when it has the last word
            Path(note).write_text(args.output_dir, encoding="utf-8")
        keep_lines(folder / "metrics.jsonl", checkpoint)
    trainer = trainer_class(start, args, triplets, groups)
    trainer.began = {
        "--train_data of fingerprint": triplets.fingerprint,
        "--seed": args.seed,
        "--data_seed": args.data_seed,
        "batch of all processes": args.train_batch_size * world_size(),
        "--gradient_accumulation_steps": args.gradient_accumulation_steps,
    }
    if args.deepspeed or args.lr_scheduler_type in OVER_SCORES:  # elsewhere a new one holds from there on
        trainer.began["--learning_rate"] = args.learning_rate
    rows, batch = len(trainer.train_dataset), trainer.began["batch of all processes"]
    whole = rows >= batch or not args.dataloader_drop_last
    require(whole, "--dataloader_drop_last", f"{rows:,} rows, less than a batch of {batch:,}", "at least one batch")
    _train(trainer, checkpoint, folder, groups)
    trainer.save_model(str(folder / "model"))
    trained = trainer.facts()
    unset_hf_deepspeed_config()  # what is loaded from here on is one process's, whole
    leave_processes()  # what is left to do is the first one's, and may take longer than the others would wait
    if main:
        saved = functools.partial(kind.saved, trust_remote_code=model.trust_remote_code)
        average(load, saved, groups["weights"].tuned_share, folder / "model")
        facts = {"kind": kind.name, "trainer": name, "base": model.model_name_or_path, "seed": args.seed}
        facts |= {"train_data": groups["data"].train_data, "data_fingerprint": triplets.fingerprint}
        facts |= {"rows": triplets.counts, **trained}
        (folder / "model" / "README.md").write_text(kind.card(facts, groups), encoding="utf-8")
        facts["scores"] = kind.compare(load, groups, folder)
        facts |= {"wall_seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes()}
        write_json(folder / "run.json", facts | origin())
        print(f"\nmodel: {folder / 'model'}\nnext:  {kind.next}{shlex.quote(str(folder))}")
    return folder


def _train(trainer: RunTrainer, checkpoint: str | None, folder: Path, groups: dict) -> None:
    """Train; a signal ends it with a checkpoint and status 143, a lack of memory with the budget to resume with."""
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.add_callback(StopOnBrokenGradient(lambda: trainer.deepspeed))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
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
        keep = int(getattr(groups["step"], "cache_keep_tokens", 0))
        longest = groups["model"].max_seq_length or 512
        raise smaller_budget(folder, int(groups["chunks"].chunk_tokens), keep, longest) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "wandb":
            raise
        found = " ".join(str(error).split())[:200]
        raise RunError("--report_to wandb", found, "WANDB_API_KEY, `wandb login`, or WANDB_MODE=offline") from None
    stop.exit_if_signalled(folder)


def _parsed(
    argv: Sequence[str] | None, description: str, kind: Kind, step_arguments: type | None
) -> tuple[dict, Path | None]:
    kinds = kind.arguments | {"training": TrainingArguments}
    if step_arguments:
        kinds["step"] = step_arguments
    *instances, recipe = arguments.parse(list(kinds.values()), argv, description)
    groups = dict(zip(kinds, instances, strict=True))
    _check(groups)
    return groups, recipe


def _check(groups: dict) -> None:
    """Refuse contradictions before anything loads."""
    args, chunks = groups["training"], groups["chunks"]
    for group in groups.values():
        getattr(group, "check", lambda: None)()
    rows, keep = args.per_device_train_batch_size, getattr(groups.get("step"), "cache_keep_tokens", "0")
    require(rows > 0, "--per_device_train_batch_size", str(rows), "at least 1")
    for flag, (good, expected) in RANGES.items():
        value = getattr(args, flag)
        require(value is None or good(value), f"--{flag}", str(value), expected)
    require(not (args.fp16 and args.device.type == "cpu"), "--fp16", "no GPU", "--bf16, or neither")
    _check_reporters(args.report_to)
    for flag, value, least in (("chunk_tokens", chunks.chunk_tokens, 1), ("cache_keep_tokens", keep, 0)):
        good = value == "auto" or (value.isdecimal() and int(value) >= least)
        require(good, f"--{flag}", value, f"auto or a whole number from {least}")
    require(
        args.n_gpu <= 1,
        "this command",
        f"{args.n_gpu} GPUs in one process",
        "the finetune.sh beside it, which starts one process a GPU",
    )
    rank, engine = getattr(groups["model"], "lora_rank", None), args.deepspeed
    require(not (rank and engine), "--lora_rank", "--deepspeed", "one of the two: LoRA's few trained weights leave "
            "ZeRO nothing to split")  # fmt: skip
    if getattr(groups.get("step"), "compile", False):
        untried = {"no GPU": args.device.type != "cuda", "--lora_rank": rank, "--deepspeed": engine}
        for found, there in (untried | {"--activation_checkpointing": args.activation_checkpointing}).items():
            require(not there, "--compile", found, "a GPU, and neither LoRA, DeepSpeed nor activation checkpointing")
    length = groups["model"].max_seq_length
    require(length is None or length >= 8, "--max_seq_length", str(length), "at least 8 tokens")
    tasks = groups["evaluation"].eval_tasks
    require(
        args.eval_strategy == "no" or bool(tasks),
        "--eval_steps",
        "no --eval_tasks",
        "--eval_tasks with at least one task",
    )
    require(
        groups["evaluation"].eval_split is None or bool(tasks), "--eval_split", "no --eval_tasks", "--eval_tasks too"
    )


def _check_reporters(names: list[str]) -> None:
    """Refuse --report_to what is unknown or not installed before anything loads."""
    for name in names:
        known = sorted(INTEGRATION_TO_CALLBACK)
        require(name in known, f"--report_to {name}", "an unknown name", "none or wandb" + nearest(name, known))
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            require(False, f"--report_to {name}", why, "none, or what is installed")


def _tasks(evaluation: arguments.EvaluationArguments) -> tuple[list[Task], list[Task]]:
    """Each task's split for scores while training, and the one that the last table is from, test where there is one.

    Both are read at the start, so that what is broken shows before training.
    """
    tasks, last = [], []
    for path in evaluation.eval_tasks:
        there = splits(path)
        split = evaluation.eval_split or ("dev" if "dev" in there or not there else there[0])
        held_out = next((name for name in ("test", "dev", *there) if name in there), split)
        if split not in (evaluation.eval_split, "dev"):
            print(f"note: {path} has no dev split; scores while training are on {split}, so choose nothing by them",
                  file=sys.stderr)  # fmt: skip
        if there and held_out != "test":
            print(f"note: {path} has no test split; the last table will be of {held_out}", file=sys.stderr)
        of_training, of_table = load_splits(path, [split, held_out])
        tasks.append(of_training)
        last.append(of_table)
    names = [task.name for task in tasks]
    again = next((name for name in names if names.count(name) > 1), None)
    require(again is None, "--eval_tasks", f"two tasks named {again}", "folders of different names, for their scores")
    return tasks, last


def _choose_metric(args: TrainingArguments, tasks: list[Task]) -> None:
    """What the best model is chosen by: the dev score that is named, by default their mean; FlagError for another."""
    if args.lr_scheduler_type in OVER_SCORES:  # of a loss, by default
        args.lr_scheduler_kwargs = {"mode": "max"} | (args.lr_scheduler_kwargs or {})
    if args.metric_for_best_model is None:
        return
    names = [f"{task.name}/ndcg_at_10" for task in tasks] + ["mean/ndcg_at_10"] * (len(tasks) > 1)
    if args.metric_for_best_model == "loss" and names:  # what the parent makes of none
        args.metric_for_best_model = names[-1]
    metric = args.metric_for_best_model.removeprefix("eval_")
    expected = f"one of {', '.join(names)}{nearest(metric, names)}" if names else "--eval_tasks to choose by"
    require(metric in names, f"--metric_for_best_model {metric}", "no dev score", expected)
    args.greater_is_better = True


def _cut_lines(kind: Kind, start: nn.Module, triplets: Triplets, groups: dict) -> list[str]:
    """How many of some rows training does not read to the end, where there are any."""
    most = min(groups["data"].train_max_seq_length or start.max_seq_length, start.max_seq_length)
    rows = some_of(triplets.pairs)
    what, longer = kind.longer(start, rows, most)
    line = f"cut:     {longer:,} of {len(rows['query']):,} {what} looked at have more than {most:,} tokens"
    return [line] if longer else []


def _budget_lines(groups: dict) -> list[str]:
    kept = getattr(groups.get("step"), "cache_keep_tokens", None)
    keep = "" if kept is None else f", graphs of {kept:,} tokens kept"
    lines = [f"chunks:  at most {groups['chunks'].chunk_tokens:,} padded tokens{keep}"]
    args = groups["training"]
    if args.gradient_accumulation_steps > 1:
        lines.append(f"         a step adds up {args.gradient_accumulation_steps} such batches")
    if args.device.type == "cpu" and has_bfloat16(args.device) and not args.bf16:
        lines.append("note:    this processor multiplies bfloat16 natively; --bf16 --use_cpu is faster, and less exact")
    return lines
