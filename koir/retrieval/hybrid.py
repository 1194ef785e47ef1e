"""Two first stages as one: reciprocal rank fusion, or a weighted sum of scores brought to one scale."""

from collections.abc import Sequence

import numpy as np

from koir.retrieval.ranking import Aligned, as_run, best, placed

COSINE = 25.0  # what a cosine of 1 weighs in points of BM25; about where weights of 0.2 to 0.8 make a difference
RRF_K = 60  # Cormack, Clarke and Buettcher 2009
DENSE_SHARE = 0.3  # where nothing was chosen on dev
FETCH = 1000  # candidates of each part that take part in the fusion


def reciprocal_ranks(runs: Sequence[dict[str, float]], depth: int) -> dict[str, float]:
    """The `depth` best by the sum over runs of 1 / (RRF_K + rank), ranks from 1: id -> sum.

    runs: each best first, as searches return them. A document that a run lacks gets nothing from it.
    """
    sums: dict[str, float] = {}
    for run in runs:
        for rank, document in enumerate(run, 1):
            sums[document] = sums.get(document, 0.0) + 1 / (RRF_K + rank)
    ids = sorted(sums)
    scores = np.array([sums[document] for document in ids], dtype=np.float32)  # [n]
    order = best(scores, depth)
    return as_run(ids, order, scores[order])


def weighted(lexical: dict[str, float], dense: dict[str, float]) -> Aligned:
    """BM25 scores and cosines of one query on one scale that is the same for all queries.

    Scores stretched query by query (min-max) would make the best of a poor run as good as the best of a clear one.
    A document that BM25 lacks has no word of the query: 0. One that the dense run lacks is taken for its worst.
    """
    lowest = min(dense.values(), default=0.0)
    return placed(lexical, {document: COSINE * (score - lowest) for document, score in dense.items()})


class Hybrid:
    """A lexical and a dense first stage, fused.

    fusion: "rrf", or "weighted": `weighted` mixed at `weight`, the dense part's share.
    """

    def __init__(self, lexical, dense, name: str, fusion: str, weight: float | None):
        self.lexical, self.dense, self.name, self.fusion, self.weight = lexical, dense, name, fusion, weight

    @property
    def ids(self) -> list[str]:
        """Document ids, sorted."""
        return self.dense.ids

    def search(self, queries: Sequence[str], depth: int, vectors: np.ndarray | None = None) -> list[dict[str, float]]:
        """For each query its `depth` best documents: id -> fused score. vectors: as `Dense.search` takes them."""
        return [self.fuse(*parts, depth) for parts in self.parts(queries, depth, vectors)]

    def parts(
        self, queries: Sequence[str], depth: int, vectors: np.ndarray | None = None
    ) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Each query's lexical and dense run, before they are fused."""
        fetch = max(FETCH, depth)
        dense = self.dense.search(queries, fetch, vectors)
        return list(zip(self.lexical.search(queries, fetch), dense, strict=True))

    def fuse(self, lexical: dict[str, float], dense: dict[str, float], depth: int) -> dict[str, float]:
        """One query's fused candidates, best first."""
        if self.fusion == "rrf":
            return reciprocal_ranks([lexical, dense], depth)
        return weighted(lexical, dense).mixed(self.weight, depth)
