"""One training run as a command: arguments, folders, resuming, the table of what was gained, run.json."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
import yaml
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from koir import arguments, budget
from koir.arguments import TrainingArguments, require
from koir.encoder import Encoder, load_encoder
from koir.errors import RunError
from koir.evaluation import pipeline
from koir.evaluation.results import SCORE_HEADER, score_row, table
from koir.evaluation.tasks import Task, load_task, splits
from koir.gather import leave_processes, world_size
from koir.interruptions import StopOnBrokenGradient, StopOnSignal, out_of_memory, smaller_budget
from koir.manifest import origin, peak_memory_bytes, write_json, written_aside
from koir.retrieval import stages
from koir.training import EmbeddingTrainer
from koir.triplets import Triplets, load_triplets, report

SIGNIFICANT = 0.05


def run(
    trainer_class: type[EmbeddingTrainer],
    name: str,
    description: str,
    argv: Sequence[str] | None = None,
    step_arguments: type | None = None,
) -> Path:
    """One training run from arguments to run.json; returns the run folder. Everything v1 and v1.1 do but their step.

    step_arguments: the dataclass of flags that only this trainer's step knows.
    """
    started = time.perf_counter()
    groups, recipe = _parsed(argv, description, step_arguments)
    args, model = groups["training"], groups["model"]
    transformers.utils.logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it had to find out
    args.output_dir, checkpoint = _folders(args, f"{name}-{recipe.stem if recipe else 'run'}")
    folder, main = Path(args.output_dir), args.process_index == 0
    groups["dev_tasks"] = _dev_tasks(groups["evaluation"])
    load = _loader(model)
    unset_hf_deepspeed_config()  # encoders are small enough to load whole; its engine splits them afterwards
    encoder = load()
    with args.main_process_first(desc="reading rows"):
        triplets = load_triplets(groups["data"].train_data)
    budget.settle(groups, encoder.to(args.device), folder / "recipe.yaml" if checkpoint else None)
    if args.deepspeed:
        set_hf_deepspeed_config(args.hf_deepspeed_config)
    if main:
        _say_start(encoder, triplets, args, groups)
        _write_recipe(folder, groups)
        _keep_lines(folder / "metrics.jsonl", checkpoint)
    trainer = trainer_class(encoder, args, triplets, groups)
    _train(trainer, checkpoint, folder, groups)
    trainer.save_model(str(folder / "model"))
    trained = trainer.facts()
    unset_hf_deepspeed_config()  # what is loaded from here on is one process's, whole
    leave_processes()  # what is left to do is the first one's, and may take longer than the others would wait
    if main:
        facts = {"kind": "encoder", "trainer": name, "base": model.model_name_or_path, "seed": args.seed}
        facts |= {"train_data": groups["data"].train_data, "data_fingerprint": triplets.fingerprint}
        facts |= {"rows": triplets.counts, **trained}
        (folder / "model" / "README.md").write_text(_card(facts, groups), encoding="utf-8")
        tasks = groups["evaluation"].eval_tasks
        facts["scores"] = _base_against_tuned(load, tasks, model.model_name_or_path, folder, args.device)
        facts |= {"wall_seconds": time.perf_counter() - started, "peak_memory_bytes": peak_memory_bytes()}
        write_json(folder / "run.json", facts | origin())
        print(f"\nmodel: {folder / 'model'}\nnext:  .venv/bin/python evaluate.py --first_stage bm25 dense:{folder}")
    return folder


def _train(trainer: EmbeddingTrainer, checkpoint: str | None, folder: Path, groups: dict) -> None:
    """Train; a signal ends it with a checkpoint and status 143, a lack of memory with the budget to resume with."""
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.add_callback(StopOnBrokenGradient())
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        keep = int(getattr(groups.get("step"), "cache_keep_tokens", 0))
        longest = groups["model"].max_seq_length or 512
        raise smaller_budget(folder, int(groups["chunks"].chunk_tokens), keep, longest) from None
    stop.exit_if_signalled(folder)


def _parsed(argv: Sequence[str] | None, description: str, step_arguments: type | None) -> tuple[dict, Path | None]:
    kinds = {
        "model": arguments.ModelArguments,
        "data": arguments.DataArguments,
        "loss": arguments.LossArguments,
        "chunks": arguments.ChunkArguments,
        "evaluation": arguments.EvaluationArguments,
        "training": TrainingArguments,
    }
    if step_arguments:
        kinds["step"] = step_arguments
    *instances, recipe = arguments.parse(list(kinds.values()), argv, description)
    groups = dict(zip(kinds, instances, strict=True))
    _check(groups)
    return groups, recipe


def _loader(model: arguments.ModelArguments) -> Callable[[], Encoder]:
    """Loads what training starts from, each time the same."""
    if model.trust_remote_code:
        print(f"warning: code that comes with {model.model_name_or_path} will run here", file=sys.stderr)
    return functools.partial(
        load_encoder,
        model.model_name_or_path,
        pooling=model.pooling,
        max_seq_length=model.max_seq_length,
        prompts={"query": model.query_prompt, "document": model.document_prompt},
        trust_remote_code=model.trust_remote_code,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        num_hidden_layers=model.num_hidden_layers,
    )


def _check(groups: dict) -> None:
    """Refuse contradictions before anything loads."""
    args, chunks = groups["training"], groups["chunks"]
    groups["loss"].check()
    groups["data"].check()
    rows, keep = args.per_device_train_batch_size, getattr(groups.get("step"), "cache_keep_tokens", "0")
    require(rows > 0, "--per_device_train_batch_size", str(rows), "at least 1")
    for flag, value, least in (("chunk_tokens", chunks.chunk_tokens, 1), ("cache_keep_tokens", keep, 0)):
        good = value == "auto" or (value.isdecimal() and int(value) >= least)
        require(good, f"--{flag}", value, f"auto or a whole number from {least}")
    require(
        args.n_gpu <= 1,
        "this command",
        f"{args.n_gpu} GPUs in one process",
        "bash v1.1/scripts/finetune.sh, which starts one process a GPU",
    )
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


def _folders(args: TrainingArguments, name: str) -> tuple[str, str | None]:
    """The run folder and the checkpoint to resume from; refuses to mix two runs in one folder."""
    resume = args.resume_from_checkpoint
    if resume and resume != "last":
        checkpoint = Path(resume)
        if not (checkpoint / "trainer_state.json").is_file():
            raise RunError(
                f"--resume_from_checkpoint {resume}", "no complete checkpoint", "a folder with trainer_state.json"
            )
        folder = Path(args.output_dir or checkpoint.resolve().parents[1])
        _refuse_complete(folder)
        return str(folder), resume
    stamp = os.environ.get("KOIR_STARTED") or time.strftime("%Y%m%d-%H%M%S")
    folder = Path(args.output_dir or f"outputs/{name}-{stamp}")
    complete = [c for c in (folder / "checkpoints").glob("checkpoint-*") if (c / "trainer_state.json").is_file()]
    newest = max(complete, key=lambda c: int(c.name.rpartition("-")[2]), default=None)
    _refuse_complete(folder)
    if resume == "last" and newest is None:
        raise RunError(f"--resume_from_checkpoint last in {folder}", "no complete checkpoint", "one to resume from")
    if resume is None and newest is not None:
        raise RunError(f"--output_dir {folder}", f"an unfinished run ({newest.name})", "--resume_from_checkpoint last")
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder), str(newest) if resume else None


def _refuse_complete(folder: Path) -> None:
    if (folder / "run.json").is_file():
        raise RunError(f"--output_dir {folder}", "a complete run", "another folder; a run is never overwritten")


def _dev_tasks(evaluation: arguments.EvaluationArguments) -> list[Task]:
    tasks = []
    for path in evaluation.eval_tasks:
        split = evaluation.eval_split or ("dev" if "dev" in splits(path) else None)
        if split is None and (there := splits(path)):
            split = there[0]
            print(f"note: {path} has no dev split; scores while training are on {split}, so choose nothing by them",
                  file=sys.stderr)  # fmt: skip
        tasks.append(load_task(path, split or "dev"))
    return tasks


def _say_start(encoder: Encoder, triplets: Triplets, args: TrainingArguments, groups: dict) -> None:
    parameters = sum(p.numel() for p in encoder.parameters())
    rows = args.per_device_train_batch_size * world_size()
    print(f"rows:    {report(triplets.counts)}", file=sys.stderr)
    size = f"{parameters / 1e6:.1f}M parameters, {encoder.pooling} pooling, at most {encoder.max_seq_length} tokens"
    print(f"encoder: {groups['model'].model_name_or_path}, {size}", file=sys.stderr)
    each = f"{world_size()} x {args.per_device_train_batch_size:,}"
    print(f"batch:   {rows:,} queries ({each}) see each other's documents", file=sys.stderr)
    if args.device.type == "cuda":
        with torch.autocast("cuda", torch.bfloat16 if args.bf16 else torch.float16, enabled=args.bf16 or args.fp16):
            why = encoder.why_padded(args.device)
        print(f"padding: {f'kept, {why}' if why else 'none, variable-length attention'}", file=sys.stderr)
    kept = getattr(groups.get("step"), "cache_keep_tokens", None)
    keep = "" if kept is None else f", graphs of {kept:,} tokens kept"
    print(f"chunks:  at most {groups['chunks'].chunk_tokens:,} padded tokens{keep}", file=sys.stderr)
    if args.gradient_accumulation_steps > 1:
        print(f"         a step adds up {args.gradient_accumulation_steps} such batches", file=sys.stderr)


def _write_recipe(folder: Path, groups: dict) -> None:
    """recipe.yaml: every value that was in force, so that the run can be repeated by naming it."""
    keys = {}
    for name in [name for name in groups if name not in ("training", "dev_tasks")]:
        keys |= vars(groups[name])
    defaults = TrainingArguments(output_dir=groups["training"].output_dir).to_dict()
    for key, value in groups["training"].to_dict().items():
        if key not in arguments.NOT_OURS and value != defaults.get(key) and key != "resume_from_checkpoint":
            keys[key] = value
    text = yaml.safe_dump({k: v for k, v in keys.items() if v is not None}, allow_unicode=True, sort_keys=False)
    with written_aside(folder / "recipe.yaml") as aside:
        aside.write_text(text, encoding="utf-8")


def _keep_lines(file: Path, checkpoint: str | None) -> None:
    """On resume, drop the lines that the interrupted run wrote after the checkpoint; they will be written again."""
    if not file.exists():
        return
    step = int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except ValueError:  # a line cut short by the interruption
            continue
    with written_aside(file) as aside:
        aside.write_text("".join(lines), encoding="utf-8")


def _base_against_tuned(
    load: Callable, tasks: Sequence[str], base_name: str, folder: Path, device: torch.device
) -> dict:
    """Score base and tuned on the held-out split of each task, print the table, warn of losses; returns the scores."""
    if not tasks:
        return {}
    base, tuned = load().to(device), load_encoder(str(folder / "model")).to(device)  # tuned as it was saved
    scores, lines = {}, []
    for path in tasks:
        split = "test" if "test" in splits(path) else splits(path)[-1]
        task = load_task(path, split)
        before = pipeline.evaluate_first_stage(stages.in_memory(base, progress=True), task, f"dense:{base_name}")
        after = pipeline.evaluate_first_stage(stages.in_memory(tuned, progress=True), task, f"dense:{folder}")
        difference, p = pipeline.compare(after, before)
        rows = [score_row(f"base ({base_name})", before.content), score_row("tuned", after.content)]
        print(f"\n{task.name}, {split}: {len(task.queries):,} queries, {len(task.corpus):,} documents")
        print(table(SCORE_HEADER, rows))
        print(f"nDCG@10 {difference:+.3f}, p = {p:.4f} (paired randomisation)")
        if difference < 0 and p < SIGNIFICANT:
            lines.append(f"WARNING: tuned is significantly worse than its base on {task.name} ({difference:+.3f})")
        scores[task.name] = {"split": split, "difference": difference, "p": p}
        for kind, done in (("base", before), ("tuned", after)):
            scores[task.name][kind] = done.content["scores"][split][0] | {
                "intervals": done.content["koir"]["intervals"]
            }
    print("\n".join(lines))
    return scores


def _card(facts: dict, groups: dict) -> str:
    """The model folder's README: how to load it and where it comes from."""
    model, loss = groups["model"], groups["loss"]
    return f"""---
language: ko
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, koir]
base_model: {model.model_name_or_path}
---

# Korean retrieval encoder

    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer("PATH")
    queries = model.encode_query(["연차는 며칠인가요?"])
    documents = model.encode_document(["..."])

The prompts in `config_sentence_transformers.json` are part of the model: without them scores drop.

- trained by koir {facts["trainer"]} from `{model.model_name_or_path}`, seed {facts["seed"]}, {facts["steps"]:,} steps
- rows: {facts["rows"]["pairs"]:,} pairs, fingerprint `{facts["data_fingerprint"][:16]}`
- InfoNCE, temperature {loss.temperature}, {facts["negatives_per_query"]:,.0f} negatives a query
"""
