"""What is evaluated: first stage, reranker, depth and weights as one named thing, scored and compared."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from koir.errors import FlagError, nearest, nearest_beside
from koir.evaluation.metrics import KS, evaluate_run
from koir.evaluation.results import file_name, result
from koir.evaluation.significance import paired
from koir.evaluation.tasks import Task
from koir.retrieval.hybrid import DENSE_SHARE
from koir.retrieval.ranking import SCALES, ranked
from koir.retrieval.score_maps import SCORE_MAPS

DEPTH = 100  # candidates kept for each query


@dataclass(frozen=True)
class Pipeline:
    """The content of pipeline.json. What does not apply is None.

    weight: the dense part's share of a weighted hybrid. interpolate: the reranker's share of the final score, both
    scores normalised by `normalise` over the candidates; None ranks by the reranker alone. score_map: how scores are
    shown. chosen_on: the splits that the weights were chosen on, None where they were given. passage_tokens: of the
    passages in which the reranker reads long documents, None where it reads their beginnings.
    """

    first_stage: str
    index_uri: str | None = None
    fusion: str | None = None
    weight: float | None = None
    reranker: str | None = None
    depth: int = DEPTH
    interpolate: float | None = None
    normalise: str | None = None
    score_map: str | None = None
    chosen_on: list[str] | None = None
    passage_tokens: int | None = None

    @property
    def name(self) -> str:
        """The folder's name under results/."""
        name = file_name(self.first_stage) + ("-rrf" if self.fusion == "rrf" else "")
        if self.weight not in (None, DENSE_SHARE) and self.chosen_on is None:  # given by hand, to be compared
            name += f"-w{self.weight:g}"
        if self.reranker is None:
            return name
        mixed = "~mixed" if self.interpolate is not None else ""
        reranker = file_name(f"rerank:{self.reranker}").removeprefix("rerank-")
        passages = f"p{self.passage_tokens}" if self.passage_tokens else ""
        return f"{name}+{reranker}@{self.depth}{passages}{mixed}"

    def content(self) -> dict:
        """As JSON."""
        return dataclasses.asdict(self)


def read_pipeline(file: str) -> Pipeline:
    """Read pipeline.json. Raises FlagError where it is missing, broken, or holds an unknown key or a wrong value."""
    if not Path(file).exists():
        expected = "a pipeline.json that evaluate.py wrote" + nearest_beside(Path(file))
        raise FlagError(f"--pipeline {file}", "no such file", expected)
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        known = [field.name for field in dataclasses.fields(Pipeline)]
        for key in sorted(set(content) - set(known)) if isinstance(content, dict) else ():
            expected = f"a pipeline.json that evaluate.py wrote, with {known[0]} and its like{nearest(key, known)}"
            raise FlagError(f"--pipeline {file}, {key}"[:200], "an unknown key", expected)
        one = Pipeline(**content)
    except (OSError, ValueError, TypeError) as error:
        raise FlagError(f"--pipeline {file}", str(error)[:200], "a pipeline.json that evaluate.py wrote") from None
    share = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1  # noqa: E731
    text = lambda value: isinstance(value, str)  # noqa: E731
    count = lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0  # noqa: E731
    checks = {
        "first_stage": text(one.first_stage),
        "index_uri": one.index_uri is None or text(one.index_uri),
        "fusion": one.fusion in (None, "weighted", "rrf"),
        "weight": one.weight is None or share(one.weight),
        "reranker": one.reranker is None or text(one.reranker),
        "depth": count(one.depth),
        "interpolate": one.interpolate is None or share(one.interpolate),
        "normalise": one.normalise in (None, *SCALES),
        "score_map": one.score_map in (None, *SCORE_MAPS),
        "chosen_on": one.chosen_on is None or (isinstance(one.chosen_on, list) and all(map(text, one.chosen_on))),
        "passage_tokens": one.passage_tokens is None or count(one.passage_tokens),
    }
    for name, good in checks.items():
        if not good:
            place, expected = f"--pipeline {file}, {name}", "a value that evaluate.py writes"
            raise FlagError(place, f"{getattr(one, name)!r:.60}", expected)
    return one


@dataclass
class Evaluated:
    """One pipeline on one task. scores: query id -> metrics. run: query id -> {document id: score}. content: JSON."""

    scores: dict[str, dict[str, float]]
    run: dict[str, dict[str, float]]
    content: dict


def evaluated(
    pipeline: Pipeline, task: Task, run: dict, recall: float, latency: dict, key: str | None, seconds: float
) -> Evaluated:
    """Score a finished run. recall: candidate recall. latency: as results.py lays it out."""
    scores = evaluate_run(task.qrels, run)
    koir = {
        "name": pipeline.name,
        "pipeline": pipeline.content(),
        "key": key,
        "task_fingerprint": task_fingerprint(task),
        "documents": len(task.corpus),
        "candidate_recall": recall,
        "latency": latency,
        "milliseconds_per_query": latency["total_ms"],
        "tied_queries": sum(is_tied(candidates) for candidates in run.values()),
        "comparisons": [],
    }
    return Evaluated(scores, run, result(task.name, task.split, scores, seconds, koir, task.subset))


def evaluate_first_stage(index: Callable, task: Task, pipeline: Pipeline, key: str | None = None) -> Evaluated:
    """Index the task's corpus, search all its queries, and score the run."""
    started = time.perf_counter()
    retriever = index(task.corpus)
    retriever.search(list(task.queries.values())[:1], 1)  # what loads with the first query is not a query's time
    indexed = time.perf_counter()
    depth = pipeline.depth if task.candidates is None else len(task.corpus)
    found = retriever.search(list(task.queries.values()), depth)
    searched = time.perf_counter()
    run = dict(zip(task.queries, found, strict=True))
    if task.candidates is not None:  # the task gives the candidates, the first stage only their order
        run = {query: {d: of_query.get(d, 0.0) for d in task.candidates[query]} for query, of_query in run.items()}
    ms = 1000 * (searched - indexed) / len(task.queries)
    latency = {"index_seconds": indexed - started, "first_stage_ms": ms, "reranker_ms": None, "total_ms": ms}
    latency["pairs_per_second"] = None
    recall = candidate_recall(task.qrels, run, pipeline.depth)
    return evaluated(pipeline, task, run, recall, latency, key, time.perf_counter() - started)


def candidate_recall(qrels: dict, run: dict, depth: int) -> float:
    """Mean share of right answers among the `depth` best candidates: what no reranker can exceed."""
    shares = []
    for query, answers in qrels.items():
        right = {document for document, grade in answers.items() if grade > 0}
        shares.append(len(right & set(ranked(run.get(query, {}))[:depth])) / len(right))
    return float(np.mean(shares))


def is_tied(candidates: dict[str, float]) -> bool:
    """Whether two of a query's first eleven candidates have the same float32 score, so that ids decided the ten."""
    scores = [np.float32(candidates[document]) for document in ranked(candidates)[:11]]
    return any(first == second for first, second in zip(scores, scores[1:], strict=False))


def task_fingerprint(task: Task) -> str:
    """sha256 over the split's queries, answers, corpus and given candidates: results of different data never mix."""
    parts = [task.split, task.queries, task.qrels, task.corpus]
    if task.candidates is not None:
        parts.append(task.candidates)
    content = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def comparison(ours: Evaluated, theirs: Evaluated, against: str) -> dict:
    """Of nDCG@10, ours - theirs, as results.py lays it out: difference with interval and p, queries won, lost, tied.

    Where our lists end before rank 10, of nDCG at the deepest rank that they reach: ranks that they lack are no loss.
    """
    pipeline = ours.content["koir"]["pipeline"]
    reach = pipeline["depth"] if pipeline["reranker"] else max(KS)
    metric = f"ndcg_at_{max(k for k in KS if k <= reach)}"
    first = [of_query[metric] for of_query in ours.scores.values()]
    second = [theirs.scores[query][metric] for query in ours.scores]
    return {"against": against, "metric": metric} | paired(first, second)
