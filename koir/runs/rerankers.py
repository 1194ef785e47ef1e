"""What sets a reranker's run apart: how it loads, what it says, and the table of first stage, base and tuned."""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from koir.arguments import ChunkArguments
from koir.evaluation import pipeline
from koir.evaluation.pipeline import Evaluated, Pipeline
from koir.evaluation.report import SCORE_HEADER, rank_of, score_row, worse
from koir.evaluation.tasks import Task
from koir.gather import world_size
from koir.ranking_losses import POINTWISE
from koir.reranker import Reranker, load_reranker
from koir.reranker_arguments import (
    GroupArguments,
    RankingLossArguments,
    RerankerModelArguments,
    RerankingArguments,
    check_together,
)
from koir.reranker_training import candidates, reranked
from koir.retrieval.stages import first_stage, kind_and_path
from koir.runs.averaging import WeightArguments, card_line
from koir.runs.command import Kind
from koir.text_tables import terminal_table
from koir.triplets import Triplets


def _loader(model: RerankerModelArguments) -> Callable[[], Reranker]:
    """Loads what training starts from, each time the same."""
    if model.trust_remote_code:
        print(f"warning: code that comes with {model.model_name_or_path} will run here", file=sys.stderr)
    settings = {name: value for name, value in vars(model).items() if name != "model_name_or_path"}
    return functools.partial(load_reranker, model.model_name_or_path, new_head=True, **settings)


def _describe(reranker: Reranker, groups: dict) -> list[str]:
    parameters, rows = sum(p.numel() for p in reranker.parameters()), groups["training"].per_device_train_batch_size
    head = ", a new scoring head" if reranker.new_head else ""
    size = f"{parameters / 1e6:.1f}M parameters{head}, at most {reranker.max_seq_length} tokens a pair"
    data, early = groups["data"], groups["data"].random_negatives_until
    source = "the rows" if data.negatives_from == "rows" else data.negatives_from
    curriculum = f"random for the first {early:.0%} of training, then from {source}" if early else f"from {source}"
    return [
        f"start:   {groups['model'].model_name_or_path}, {size}",
        f"groups:  {rows * world_size():,} queries ({world_size()} x {rows:,}), up to {data.group_size} documents each",
        f"loss:    {groups['loss'].loss}; negatives {curriculum}",
    ]


def _count_cut(reranker: Reranker, rows: dict, most: int) -> tuple[str, int]:
    return "pairs", reranker.too_long(list(zip(rows["query"], rows["document"], strict=True)), most)


def _check(groups: dict) -> None:
    """Raise FlagError for contradictions, and for first stages that there are not."""
    check_together(groups)
    if groups["data"].negatives_from != "rows":
        kind_and_path(groups["data"].negatives_from, "--negatives_from", "rows, ")
    kind_and_path(groups["evaluation"].first_stage)


def _prepare(reranker: Reranker, triplets: Triplets, groups: dict) -> None:
    """Before anything is trained, raise FlagError or ModelError for a first stage that is not to be had.

    A pointwise loss needs no gradient cache, so nothing is kept for one.
    """
    if groups["loss"].loss in POINTWISE:
        groups["step"].cache_keep_tokens = "0"
    if groups["evaluation"].eval_tasks:
        first_stage(groups["evaluation"].first_stage)


def _scored(task: Task, run: dict, spec: str, depth: int, name: str | None, started: float) -> Evaluated:
    ms = 1000 * (time.perf_counter() - started) / len(task.queries)
    latency = {"index_seconds": None, "first_stage_ms": None, "reranker_ms": ms if name else None, "total_ms": ms,
               "pairs_per_second": None}  # fmt: skip
    recall = pipeline.candidate_recall(task.qrels, run, depth)
    return pipeline.evaluated(Pipeline(spec, reranker=name, depth=depth), task, run, recall, latency, None, ms / 1000)


def _first_base_tuned(load: Callable[[], Reranker], groups: dict, folder: Path) -> dict:
    """Score first stage, base and tuned on the held-out split of each task, print the table, warn of losses."""
    evaluation, device = groups["evaluation"], groups["training"].device
    if not groups["held_out"]:
        return {}
    saved = load_reranker(str(folder / "model"), trust_remote_code=groups["model"].trust_remote_code)
    base, tuned = load().to(device), saved.to(device)  # tuned as it was saved
    start = f"base ({groups['model'].model_name_or_path}{', new head' if base.new_head else ''})"
    spec, depth, scores, warnings = evaluation.first_stage, evaluation.eval_depth, {}, []
    for task in groups["held_out"]:
        started = time.perf_counter()
        first = candidates(spec, task, depth)
        rows = {spec: _scored(task, first, spec, depth, None, started)}
        for name, reranker in ((start, base), ("tuned", tuned)):
            started = time.perf_counter()
            rows[name] = _scored(task, reranked(reranker, task, first, depth, name), spec, depth, name, started)
        found, lines = _report(task, rows, depth)
        warnings += lines
        scores[task.name] = found
    print("\n".join(warnings))
    return scores


def _report(task: Task, rows: dict[str, Evaluated], depth: int) -> tuple[dict, list[str]]:
    """Print one task's table; returns its part of run.json, and warnings."""
    first, base, tuned = rows.values()
    recall = tuned.content["koir"]["candidate_recall"]
    print(f"\n{task.name}, {task.split}: {len(task.queries):,} queries, {len(task.corpus):,} documents, "
          f"{depth} candidates a query with {recall:.1%} of the right answers")  # fmt: skip
    print(terminal_table(SCORE_HEADER, [score_row(name, row.content) for name, row in rows.items()]))
    found, warnings = {"split": task.split, "depth": depth, "candidate_recall": recall}, []
    names = list(rows)
    for kind, name, other, called in (
        ("to_first_stage", names[0], first, "its own first stage"),
        ("to_base", names[1], base, "its base"),
    ):
        found[kind] = pipeline.comparison(tuned, other, name)
        difference, p, rank = found[kind]["difference"], found[kind]["p"], rank_of(found[kind])
        print(f"tuned to {name}: nDCG@{rank} {difference:+.3f}, p = {p:.4f} (paired randomisation)")
        warnings += worse("tuned", called, task.name, found[kind])
    for kind, row in (("first_stage", first), ("base", base), ("tuned", tuned)):
        found[kind] = row.content["scores"][task.split][0] | {"intervals": row.content["koir"]["intervals"]}
    return found, warnings


def _card(facts: dict, groups: dict) -> str:
    """The model folder's README: how to load it and where it comes from."""
    model, data = groups["model"], groups["data"]
    return f"""---
language: ko
library_name: sentence-transformers
pipeline_tag: text-ranking
tags: [sentence-transformers, cross-encoder, reranker, koir]
base_model: {model.model_name_or_path}
---

# Korean reranker

    from sentence_transformers import CrossEncoder
    model = CrossEncoder("PATH")
    model.predict([("연차는 며칠인가요?", "1년간 80퍼센트 이상 출근한 ...")])   # 0 .. 1, by a sigmoid

Rank by the raw logits (`activation_fn=torch.nn.Identity()`): near 1 many sigmoids are equal.

- trained by koir {facts["trainer"]} from `{model.model_name_or_path}`, seed {facts["seed"]}, {facts["steps"]:,} steps
- rows: {facts["rows"]["pairs"]:,} pairs, fingerprint `{facts["data_fingerprint"][:16]}`
- {groups["loss"].loss}, groups of up to {data.group_size}, negatives from {data.negatives_from}, \
{facts["negatives_per_query"]:,.1f} a query
{card_line(groups["weights"].tuned_share)}"""


RERANKER = Kind(
    name="reranker",
    arguments={
        "model": RerankerModelArguments,
        "weights": WeightArguments,
        "data": GroupArguments,
        "loss": RankingLossArguments,
        "chunks": ChunkArguments,
        "evaluation": RerankingArguments,
    },
    loader=_loader,
    load_saved=load_reranker,
    describe=_describe,
    count_cut=_count_cut,
    compare=_first_base_tuned,
    card=_card,
    evaluate_flags=lambda groups, folder: [
        "--first_stage",
        groups["evaluation"].first_stage,
        "--reranker",
        "none",
        str(folder),
    ],
    prepare=_prepare,
    check=_check,
)
