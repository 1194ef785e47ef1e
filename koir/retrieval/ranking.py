"""Rankings out of scores: the best of many documents, with ties as trec_eval breaks them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def best(scores: np.ndarray, depth: int) -> np.ndarray:
    """Positions of the `depth` highest scores, best first; of equal scores the later position comes first.

    scores: [N] float32. Documents are kept sorted by id, so the later position is the greater id: trec_eval's order.
    """
    among = np.arange(len(scores))
    if 0 < depth < len(scores):
        least = np.partition(scores, -depth)[-depth]
        among = np.flatnonzero(scores >= least)  # all that tie with the last place are still there
    return among[np.lexsort((among, scores[among]))[::-1][:depth]]


def ranked(run: dict[str, float]) -> list[str]:
    """Ids of a run in trec_eval's order: float32 scores descending, then ids descending."""
    return sorted(run, key=lambda document: (np.float32(run[document]), document), reverse=True)


def as_run(ids: Sequence[str], positions: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """id -> score of the positions, in their order."""
    return {ids[p]: float(s) for p, s in zip(positions.tolist(), scores.tolist(), strict=True)}


def minmax(scores: np.ndarray) -> np.ndarray:
    """Scores [n] moved to 0 (the worst) .. 1 (the best); all 1 where they are equal."""
    spread = np.ptp(scores) if len(scores) else 0.0
    return (scores - scores.min()) / spread if spread > 0 else np.ones_like(scores)


def standard(scores: np.ndarray) -> np.ndarray:
    """Scores [n] as standard deviations from their mean; all 0 where they are equal."""
    equal = not len(scores) or np.ptp(scores) == 0  # their deviation may be a rounding error
    return np.zeros_like(scores) if equal else (scores - scores.mean()) / scores.std()


def unscaled(scores: np.ndarray) -> np.ndarray:
    """Scores as they are."""
    return scores


SCALES = {"minmax": minmax, "z": standard, "raw": unscaled}


@dataclass(frozen=True)
class Aligned:
    """Two runs of one query on one scale: ids sorted [n], first and second [n] float64, 0 where a run lacks the id."""

    ids: list[str]
    first: np.ndarray
    second: np.ndarray

    def mixed(self, weight: float, depth: int) -> dict[str, float]:
        """The `depth` best of (1 - weight) * first + weight * second: id -> score."""
        scores = ((1 - weight) * self.first + weight * self.second).astype(np.float32)  # [n]
        order = best(scores, depth)
        return as_run(self.ids, order, scores[order])


def placed(first: dict[str, float], second: dict[str, float]) -> Aligned:
    """Two runs of a query side by side, scores as they are."""
    ids = sorted(first.keys() | second.keys())
    place = {document: number for number, document in enumerate(ids)}
    columns = []
    for run in (first, second):
        column = np.zeros(len(ids))  # [n]
        column[[place[document] for document in run]] = list(run.values())
        columns.append(column)
    return Aligned(ids, *columns)


def align(first: dict[str, float], second: dict[str, float], scale: str = "minmax") -> Aligned:
    """Bring two runs of a query to one scale, each by its own scores."""
    scaled = [
        dict(zip(run, SCALES[scale](np.array(list(run.values()), dtype=np.float64)), strict=True))
        for run in (first, second)
    ]
    return placed(*scaled)
