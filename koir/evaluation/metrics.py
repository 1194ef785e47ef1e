"""Retrieval metrics per query, computed by trec_eval's own code (pytrec-eval-terrier)."""

import numpy as np
import pytrec_eval

from koir.retrieval.ranking import ranked

KS = (1, 3, 5, 10)
_TREC = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}


def evaluate_run(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """query id -> {metric: value} for ndcg, recall, precision, mrr and hit_rate at 1, 3, 5 and 10.

    run: query id -> {document id: score}. Ties are broken as trec_eval does, by document id, descending. A query
    without candidates scores 0 everywhere.
    """
    cuts = ",".join(map(str, KS))
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {f"{name}.{cuts}" for name in _TREC.values()})
    found = evaluator.evaluate({query: candidates for query, candidates in run.items() if candidates})
    scores = {}
    for query, answers in qrels.items():
        of_query = found.get(query, {})
        scores[query] = {f"{ours}_at_{k}": of_query.get(f"{trec}_{k}", 0.0) for ours, trec in _TREC.items() for k in KS}
        rank = _first_right(run.get(query, {}), answers)
        scores[query] |= {f"mrr_at_{k}": 1 / rank if rank and rank <= k else 0.0 for k in KS}
    return scores


def _first_right(candidates: dict[str, float], answers: dict[str, int]) -> int | None:
    """The rank, from 1, of the first right answer in trec_eval's order."""
    return next((rank for rank, document in enumerate(ranked(candidates), 1) if answers.get(document, 0) > 0), None)


def ndcg(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> np.ndarray:
    """nDCG@10 alone of each query [Q], in the order of qrels; queries without candidates count as 0."""
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(
        {q: docs for q, docs in run.items() if docs}
    )
    return np.array([found[query]["ndcg_cut_10"] if query in found else 0.0 for query in qrels])  # [Q]


def mean_ndcg(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> float:
    """Mean nDCG@10 alone; queries without candidates count as 0."""
    return float(ndcg(qrels, run).mean())


def mean_scores(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean of every metric over queries; f1_at_k is of mean precision and mean recall, as published tables have it."""
    names = next(iter(scores.values()))
    means = {name: float(np.mean([of_query[name] for of_query in scores.values()])) for name in names}
    for k in KS:
        precision, recall = means[f"precision_at_{k}"], means[f"recall_at_{k}"]
        means[f"f1_at_{k}"] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return means
