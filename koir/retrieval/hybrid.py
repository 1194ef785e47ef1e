"""Two first stages as one: reciprocal rank fusion, or a weighted sum of scores brought to one scale."""

from collections.abc import Sequence

from koir.retrieval.ranking import minmax, ranked

RRF_K = 60  # Cormack, Clarke and Buettcher 2009
FETCH = 1000  # candidates of each part that take part in the fusion


def reciprocal_ranks(runs: Sequence[dict[str, float]], k: int = RRF_K) -> dict[str, float]:
    """Sum over runs of 1 / (k + rank), ranks from 1; a document that a run lacks gets nothing from it."""
    fused: dict[str, float] = {}
    for run in runs:
        for rank, document in enumerate(ranked(run), 1):
            fused[document] = fused.get(document, 0.0) + 1 / (k + rank)
    return fused


def weighted(lexical: dict[str, float], dense: dict[str, float], weight: float) -> dict[str, float]:
    """(1 - weight) * lexical + weight * dense, each min-max normalised; a document that a run lacks gets 0 from it."""
    first, second = minmax(lexical), minmax(dense)
    return {
        document: (1 - weight) * first.get(document, 0.0) + weight * second.get(document, 0.0)
        for document in first | second
    }


def cut(run: dict[str, float], depth: int) -> dict[str, float]:
    """The `depth` best of a run, best first."""
    return {document: run[document] for document in ranked(run)[:depth]}


class Hybrid:
    """A lexical and a dense first stage, fused.

    fusion: "rrf", or "weighted" with weight, the dense part's share, from 0 to 1.
    """

    def __init__(self, lexical, dense, name: str = "hybrid", fusion: str = "rrf", weight: float | None = None):
        self.lexical, self.dense, self.name, self.fusion, self.weight = lexical, dense, name, fusion, weight
        self.ids = dense.ids

    def search(self, queries: Sequence[str], depth: int) -> list[dict[str, float]]:
        """For each query its `depth` best documents: id -> fused score."""
        return [self.fuse(*parts, depth) for parts in self.parts(queries, depth)]

    def parts(self, queries: Sequence[str], depth: int) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Each query's lexical and dense run, before they are fused."""
        fetch = max(FETCH, depth)
        return list(zip(self.lexical.search(queries, fetch), self.dense.search(queries, fetch), strict=True))

    def fuse(self, lexical: dict[str, float], dense: dict[str, float], depth: int) -> dict[str, float]:
        """One query's fused candidates, best first."""
        if self.fusion == "rrf":
            return cut(reciprocal_ranks([lexical, dense]), depth)
        return cut(weighted(lexical, dense, self.weight), depth)
