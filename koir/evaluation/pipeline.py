"""Run first stages over tasks and score them."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from koir.evaluation.metrics import evaluate_run
from koir.evaluation.results import result
from koir.evaluation.significance import paired_p
from koir.evaluation.tasks import Task

DEPTH = 100  # candidates kept for each query


@dataclass
class Evaluated:
    """One pipeline on one task. scores: query id -> metrics. run: query id -> {document id: score}. content: JSON."""

    scores: dict[str, dict[str, float]]
    run: dict[str, dict[str, float]]
    content: dict


def evaluate_first_stage(index: Callable, task: Task, name: str) -> Evaluated:
    """Index the task's corpus, search all its queries, and score the run."""
    started = time.perf_counter()
    retriever = index(task.corpus)
    indexed = time.perf_counter()
    found = retriever.search(list(task.queries.values()), DEPTH)
    searched = time.perf_counter()
    run = dict(zip(task.queries, found, strict=True))
    scores = evaluate_run(task.qrels, run)
    koir = {
        "pipeline": {"first_stage": name, "reranker": None, "depth": DEPTH},
        "task_fingerprint": task_fingerprint(task),
        "documents": len(task.corpus),
        "index_seconds": indexed - started,
        "milliseconds_per_query": 1000 * (searched - indexed) / len(task.queries),
    }
    return Evaluated(scores, run, result(task.name, task.split, scores, time.perf_counter() - started, koir))


def task_fingerprint(task: Task) -> str:
    """sha256 over the split's queries, answers and corpus, so that results of different data never mix."""
    content = json.dumps([task.split, task.queries, task.qrels, task.corpus], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def compare(ours: Evaluated, theirs: Evaluated, metric: str = "ndcg_at_10") -> tuple[float, float]:
    """Mean difference of a metric (ours - theirs) on the same queries, and its paired randomisation p."""
    first = [of_query[metric] for of_query in ours.scores.values()]
    second = [theirs.scores[query][metric] for query in ours.scores]
    return sum(first) / len(first) - sum(second) / len(second), paired_p(first, second)
