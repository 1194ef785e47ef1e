"""Weights chosen on dev splits, never on a split that is reported; kept in the cache by what they were chosen from."""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from koir.evaluation.metrics import ndcg
from koir.manifest import cache_folder, write_json
from koir.retrieval.ranking import Aligned

GRID = tuple(round(0.05 * step, 2) for step in range(21))


def choose_weight(
    tasks: Sequence[tuple[dict, dict[str, Aligned]]], harmless: bool = False
) -> tuple[float, dict[float, float]]:
    """The weight of GRID with the best nDCG@10, averaged over tasks, and the score of each; of equals the smallest.

    tasks: for each dev task its qrels and, by query id, the two runs that are mixed. harmless: only weights that leave
    every task at least as good as weight 0 leaves it, so that a gain on one task is never paid for by another; and of
    these the smallest within one standard error of the best (Breiman et al. 1984, section 3.4.3).
    """
    found = {weight: [_of_queries(weight, *task) for task in tasks] for weight in GRID}  # of each task: [Q]
    means = {weight: np.array([of_task.mean() for of_task in of_tasks]) for weight, of_tasks in found.items()}
    scores = {weight: float(of_tasks.mean()) for weight, of_tasks in means.items()}
    allowed = [weight for weight in GRID if not harmless or bool((means[weight] >= means[0.0] - 1e-9).all())]
    best = max(allowed, key=scores.get)
    error = {weight: _standard_error(found[best], found[weight]) if harmless else 0.0 for weight in allowed}
    return next(weight for weight in allowed if scores[weight] >= scores[best] - error[weight] - 1e-9), scores


def _of_queries(weight: float, qrels: dict, pairs: dict[str, Aligned]) -> np.ndarray:
    return ndcg(qrels, {query: pair.mixed(weight, 10) for query, pair in pairs.items()})


def _standard_error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Of the difference of two means of tasks' means, from each task's queries [Q]."""
    variances = [(mine - other).var() / len(mine) for mine, other in zip(ours, theirs, strict=True)]
    return float(np.sqrt(np.sum(variances))) / len(variances)


def remembered(key: object, choose: Callable[[], tuple[float, dict]]) -> float:
    """`choose`'s weight, from the cache where the same weights, data and settings were asked before."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = cache_folder() / "weights" / f"{name}.json"
    if not file.is_file():
        weight, scores = choose()
        write_json(file, {"weight": weight, "ndcg_at_10": scores, "key": key})
    return json.loads(file.read_text(encoding="utf-8"))["weight"]
