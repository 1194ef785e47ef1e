"""What sets an encoder's run apart: how it loads, what it says, and the table of base and tuned."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from koir import arguments
from koir.encoder import Encoder, load_encoder
from koir.evaluation import pipeline
from koir.evaluation.report import SCORE_HEADER, score_row, worse
from koir.gather import world_size
from koir.retrieval import stages
from koir.runs.averaging import WeightArguments, card_line
from koir.runs.command import Kind
from koir.text_tables import terminal_table
from koir.training import prepare


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


def _describe(encoder: Encoder, groups: dict) -> list[str]:
    args, parameters = groups["training"], sum(p.numel() for p in encoder.parameters())
    size = f"{parameters / 1e6:.1f}M parameters, {encoder.pooling} pooling, at most {encoder.max_seq_length} tokens"
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    rows, half = args.per_device_train_batch_size, torch.bfloat16 if args.bf16 else torch.float16
    with torch.autocast(args.device.type, half, enabled=args.bf16 or args.fp16):
        why = encoder.why_padded(args.device)
    padded = "none: attention gets the real tokens alone" if why is None else f"to a chunk's longest text ({why})"
    adapted = [f"LoRA:    {trained:,} parameters are trained"] if groups["model"].lora_rank is not None else []
    return [
        f"encoder: {groups['model'].model_name_or_path}, {size}",
        *adapted,
        f"batch:   {rows * world_size():,} queries ({world_size()} x {rows:,}), or as many rows as there are, see each "
        "other's documents",
        f"padding: {padded}",
    ]


def _count_cut(encoder: Encoder, rows: dict, most: int) -> tuple[str, int]:
    return "documents", encoder.too_long(rows["document"], "document", most)


def _base_against_tuned(load: Callable, groups: dict, folder: Path) -> dict:
    """Score base and tuned on the held-out split of each task, print the table, warn of losses; returns the scores."""
    base_name = groups["model"].model_name_or_path
    if not groups["held_out"]:
        return {}
    device = groups["training"].device
    saved = load_encoder(str(folder / "model"), trust_remote_code=groups["model"].trust_remote_code)
    base, tuned = load().to(device), saved.to(device)  # tuned as it was saved
    scores, lines = {}, []
    for task in groups["held_out"]:
        split = task.split
        named = pipeline.Pipeline(f"dense:{base_name}"), pipeline.Pipeline(f"dense:{folder}")
        before = pipeline.evaluate_first_stage(stages.in_memory(base, progress=True), task, named[0])
        after = pipeline.evaluate_first_stage(stages.in_memory(tuned, progress=True), task, named[1])
        found = pipeline.comparison(after, before, base_name)
        difference, p = found["difference"], found["p"]
        rows = [score_row(f"base ({base_name})", before.content), score_row("tuned", after.content)]
        print(f"\n{task.name}, {split}: {len(task.queries):,} queries, {len(task.corpus):,} documents")
        print(terminal_table(SCORE_HEADER, rows))
        print(f"nDCG@10 {difference:+.3f}, p = {p:.4f} (paired randomisation)")
        lines += worse("tuned", "its base", task.name, found)
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
    usual = vars(arguments.LossArguments())
    terms = [f"{name} {value}" for name, value in vars(loss).items() if value != usual[name] and name != "temperature"]
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
{"".join(f"- {term}{chr(10)}" for term in terms)}{card_line(groups["weights"].tuned_share)}"""


ENCODER = Kind(
    name="encoder",
    arguments={
        "model": arguments.ModelArguments,
        "weights": WeightArguments,
        "data": arguments.DataArguments,
        "loss": arguments.LossArguments,
        "chunks": arguments.ChunkArguments,
        "evaluation": arguments.EvaluationArguments,
    },
    loader=_loader,
    load_saved=load_encoder,
    describe=_describe,
    count_cut=_count_cut,
    compare=_base_against_tuned,
    card=_card,
    evaluate_flags=lambda groups, folder: ["--first_stage", "bm25", f"dense:{folder}"],
    prepare=prepare,
)
