"""The second stage over a first stage's candidates: logits once for the deepest cut, final runs for each."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from koir.evaluation.tasks import Task
from koir.reranker import Reranker
from koir.retrieval.ranking import Aligned, align, ranked


@dataclass
class Reranked:
    """logits: query id -> {document id: raw float32 logit}. seconds, pairs: by depth, the time and distinct pairs."""

    logits: dict[str, dict[str, float]]
    seconds: dict[int, float]
    pairs: dict[int, int]


def rerank(
    reranker: Reranker,
    task: Task,
    run: dict,
    depths: Sequence[int],
    progress: str | None = None,
    bf16: bool = False,
    passage_tokens: int | None = None,
) -> Reranked:
    """Score each query's candidates, as the first stage found them and nothing else, down to the deepest of `depths`.

    Each pair of texts is scored once, so that equal texts tie, whatever the depths: a logit's last bits depend on what
    it is computed beside. The candidates between two depths are timed together, so a depth's time is the sum up to it.
    """
    order = {query: ranked(run[query]) for query in task.queries}
    found = Reranked({query: {} for query in order}, {}, {})
    known: dict[tuple[str, str], float] = {}
    seconds, above = 0.0, 0
    for depth in sorted(set(depths)):
        keys = [(query, document) for query, documents in order.items() for document in documents[above:depth]]
        started = time.perf_counter()
        label = f"{progress} to depth {depth}" if progress else None
        pairs = [(task.queries[query], task.corpus[document]) for query, document in keys]
        how = {"progress": label, "bf16": bf16, "passage_tokens": passage_tokens}
        new = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        known |= zip(new, reranker.score(new, **how).tolist() if new else [], strict=True)
        seconds, above = seconds + time.perf_counter() - started, depth
        for (query, document), pair in zip(keys, pairs, strict=True):
            found.logits[query][document] = known[pair]
        found.seconds[depth], found.pairs[depth] = seconds, len(known)
    return found


def final_run(first: dict[str, float], logits: dict[str, float], depth: int, weight: float | None, scale: str) -> dict:
    """One query's final scores: the logits of its `depth` candidates, or their mixture with the first stage's."""
    if weight is None:
        return {document: logits[document] for document in ranked(first)[:depth]}
    if weight == 0:  # no scaling, in which near scores could become equal
        return {document: first[document] for document in ranked(first)[:depth]}
    return mixture(first, logits, depth, scale).mixed(weight, depth)


def mixture(first: dict[str, float], logits: dict[str, float], depth: int, scale: str) -> Aligned:
    """First-stage scores and logits of one query's `depth` candidates, each on the scale of its own list."""
    kept = ranked(first)[:depth]
    return align({d: first[d] for d in kept}, {d: logits[d] for d in kept}, scale)
