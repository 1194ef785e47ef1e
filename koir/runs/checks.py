"""What a training run is refused for before anything is trained: flags, reporters, tasks, the score to choose by."""

import math
import sys
from collections.abc import Callable, Sequence

from transformers.integrations import INTEGRATION_TO_CALLBACK

from koir.arguments import EvaluationArguments, TrainingArguments
from koir.errors import nearest
from koir.evaluation.tasks import Task, load_splits, splits
from koir.flags import require

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
    "save_steps": (lambda n: n > 0, "above 0"),
    "save_total_limit": (lambda n: n >= 1, "1 or more"),
    "logging_steps": (lambda n: n > 0, "above 0"),
    "dataloader_num_workers": (lambda n: n >= 0, "0 (none) or more"),
    "seed": (lambda n: 0 <= n < 2**32, "0 to 4,294,967,295"),
    "data_seed": (lambda n: 0 <= n < 2**32, "0 to 4,294,967,295"),
}
OPTIMIZERS = {  # parts of names, and why not
    "layerwise": "one that steps as soon as a chunk has its gradients, before the others'",
    "lomo": "one that steps as soon as a chunk has its gradients, before the others'",
    "schedule_free": "one whose weights differ between training and evaluation",
}
OVER_SCORES = ("reduce_lr_on_plateau", "greedy")  # schedules that the dev scores drive


def check(groups: dict) -> None:
    """Raise FlagError for contradictions, before anything loads. groups: the argument dataclasses by name."""
    args, chunks = groups["training"], groups["chunks"]
    for group in groups.values():
        getattr(group, "check", lambda: None)()
    rows, keep = args.per_device_train_batch_size, getattr(groups.get("step"), "cache_keep_tokens", "0")
    require(rows > 0, "--per_device_train_batch_size", str(rows), "at least 1")
    for flag, (good, expected) in RANGES.items():
        value = getattr(args, flag)
        require(value is None or good(value), f"--{flag}", str(value), expected)
    require(not (args.fp16 and args.device.type == "cpu"), "--fp16", "no GPU", "--bf16, or neither")
    kind = str(getattr(args.optim, "value", args.optim))
    why = next((why for part, why in OPTIMIZERS.items() if part in kind), None)
    require(why is None, f"--optim {kind}", why or "", "another, such as adamw_torch")
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
        "--eval_steps" if args.eval_strategy == "steps" else f"--eval_strategy {args.eval_strategy.value}",
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


def read_tasks(evaluation: EvaluationArguments) -> tuple[list[Task], list[Task]]:
    """Each task's split for scores while training, and the one that the last table is from, test where there is one.

    Both are read at the start, so that what is broken shows before training. Raises FlagError for two tasks of a name,
    TaskError for one that is broken.
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


def choose_metric(args: TrainingArguments, tasks: list[Task], held_out: Sequence[Task], split: str | None) -> None:
    """What the best model is chosen by: the dev score that is named, by default their mean; FlagError for another.

    held_out: of each task what the last table is from; a choice by the same queries is refused unless `split`, which
    --eval_split named, asks for it.
    """
    if args.lr_scheduler_type in OVER_SCORES:  # of a loss, by default
        args.lr_scheduler_kwargs = {"mode": "max"} | (args.lr_scheduler_kwargs or {})
        _refuse_choice_on_last_table(tasks, held_out, split)
    if args.metric_for_best_model is None and args.save_strategy != "best":
        return
    names = [f"{task.name}/ndcg_at_10" for task in tasks] + ["mean/ndcg_at_10"] * (len(tasks) > 1)
    require(bool(names), "what is best", "no --eval_tasks", "--eval_tasks to choose by")
    if args.metric_for_best_model in (None, "loss"):  # what the parent makes of none
        args.metric_for_best_model = names[-1]
    metric = args.metric_for_best_model.removeprefix("eval_")
    expected = f"one of {', '.join(names)}{nearest(metric, names)}"
    require(metric in names, f"--metric_for_best_model {metric}", "no dev score", expected)
    args.greater_is_better = True
    chosen = [task for task in tasks if metric in (f"{task.name}/ndcg_at_10", "mean/ndcg_at_10")]
    _refuse_choice_on_last_table(chosen, held_out, split)


def _refuse_choice_on_last_table(tasks: Sequence[Task], held_out: Sequence[Task], split: str | None) -> None:
    of_table = {(last.name, last.split) for last in held_out}
    for task in tasks:
        place, found = f"--eval_tasks {task.name}", f"scores of {task.split} to choose by, which the last table is of"
        require(split is not None or (task.name, task.split) not in of_table, place, found,
                "a task with a dev split beside it, or --eval_split where that is meant")  # fmt: skip
