"""Weights chosen on dev splits, never on a split that is reported; kept in the cache by what they were chosen from."""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from koir.evaluation.metrics import mean_ndcg
from koir.manifest import cache_folder, write_json
from koir.retrieval.ranking import Aligned

GRID = tuple(round(0.05 * step, 2) for step in range(21))


def choose_weight(
    tasks: Sequence[tuple[dict, dict[str, Aligned]]], unharmed: bool = False
) -> tuple[float, dict[float, float]]:
    """The weight of GRID with the best nDCG@10, averaged over tasks, and the score of each; of equals the smallest.

    tasks: for each dev task its qrels and, by query id, the two runs that are mixed. unharmed: only weights that leave
    every task at least as good as weight 0 leaves it, so that a gain on one task is never paid for by another.
    """
    scores, allowed, first = {}, [], None
    for weight in GRID:
        of_tasks = np.array(
            [
                mean_ndcg(qrels, {query: pair.mixed(weight, 10) for query, pair in pairs.items()})
                for qrels, pairs in tasks
            ]
        )
        first = of_tasks if first is None else first
        scores[weight] = float(np.mean(of_tasks))
        if not unharmed or bool((of_tasks >= first - 1e-9).all()):
            allowed.append(weight)
    highest = max(scores[weight] for weight in allowed)
    return next(weight for weight in allowed if scores[weight] >= highest - 1e-9), scores


def remembered(key: object, choose: Callable[[], tuple[float, dict]]) -> float:
    """`choose`'s weight, from the cache where the same weights, data and settings were asked before."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = cache_folder() / "weights" / f"{name}.json"
    if not file.is_file():
        weight, scores = choose()
        write_json(file, {"weight": weight, "ndcg_at_10": scores, "key": key})
    return json.loads(file.read_text(encoding="utf-8"))["weight"]
