"""Rankings out of scores: the best of many documents, with ties as trec_eval breaks them."""

from collections.abc import Sequence

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


def minmax(run: dict[str, float]) -> dict[str, float]:
    """Scores moved to 0 (worst of the run) .. 1 (best); all 1 where they are equal."""
    if not run:
        return {}
    low, high = min(run.values()), max(run.values())
    return {document: (score - low) / (high - low) if high > low else 1.0 for document, score in run.items()}


def standard(run: dict[str, float]) -> dict[str, float]:
    """Scores as standard deviations from the run's mean; all 0 where they are equal."""
    if not run:
        return {}
    values = np.array(list(run.values()), dtype=np.float64)
    spread = values.std() or 1.0
    return {document: (score - values.mean()) / spread for document, score in run.items()}
