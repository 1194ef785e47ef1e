"""Results as evaluate.py writes them, of made-up rankings: a folder for tests of what reads them."""

import json
import random

from koir.evaluation.metrics import evaluate_run
from koir.evaluation.results import result, write_result
from koir.evaluation.significance import interval, paired_p
from koir.manifest import write_json

PIPELINES = {
    "bm25": ("bm25", None, 0.45, 2.0),
    "dense-v1.1-demo": ("dense:outputs/v1.1-demo", None, 0.5, 8.0),
    "dense-v1.1-demo+ko@10": ("dense:outputs/v1.1-demo", "outputs/ko", 0.75, 30.0),
    "dense-v1.1-demo+ko@50": ("dense:outputs/v1.1-demo", "outputs/ko", 0.95, 130.0),
}
TASKS = ("사내규정", "AutoRAGRetrieval")


def write_results(folder, queries=40):
    """Every pipeline on every task; returns name -> task -> content."""
    contents = {}
    for task in TASKS:
        answers = {f"q{i}": {f"d{i}": 1} for i in range(queries)}
        done = {}
        for name, (stage, reranker, quality, milliseconds) in PIPELINES.items():
            run = {query: _ranking(f"{name}{task}{query}", next(iter(answers[query])), quality) for query in answers}
            scores = evaluate_run(answers, run)
            done[name] = [of_query["ndcg_at_10"] for of_query in scores.values()]
            depth = int(name.rpartition("@")[2]) if reranker else 100
            pipeline = {"first_stage": stage, "reranker": reranker, "depth": depth, "fusion": None, "weight": None}
            block = {"name": name, "pipeline": pipeline, "task_fingerprint": task, "candidate_recall": 0.9}
            block["comparisons"] = _comparisons(done[name], done[name.partition("+")[0]]) if reranker else []
            block["milliseconds_per_query"] = milliseconds
            content = result(task, "test", scores, 1.0, block)
            write_result(folder / name, content, run, answers)
            write_json(folder / name / "run.json", {"tasks": [task]})
            write_json(folder / name / "pipeline.json", pipeline)
            contents.setdefault(name, {})[task] = content
    return contents


def _ranking(seed, right, quality):
    rng = random.Random(seed)
    others = rng.sample([f"d{i}" for i in range(100, 200)], 20)
    if rng.random() < quality + 0.2:
        others.insert(0 if rng.random() < quality else rng.randrange(1, 12), right)
    return {document: 20.0 - place for place, document in enumerate(others)}


def _comparisons(ours, theirs):
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = {"difference": sum(each) / len(each), "interval": interval(each), "p": paired_p(ours, theirs)}
    return [{"against": "dense-v1.1-demo", "metric": "ndcg_at_10"} | found]


def write_run(folder, lines=6, cut_short=False):
    """A training run's folder with metrics.jsonl and, where it is complete, run.json."""
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as out:
        for step in range(1, lines + 1):
            line = {"step": step, "epoch": step / lines, "loss": 1 / step, "tokens_per_second": 100.0, "seconds": step}
            out.write(json.dumps(line) + "\n")
        out.write(json.dumps({"step": lines, "epoch": 1.0, "demo/ndcg_at_10": 0.5, "seconds": lines}) + "\n")
        if cut_short:
            out.write('{"step": 7, "lo')
    if not cut_short:
        write_json(folder / "run.json", {"trainer": "v1.1", "negatives_per_query": 511.0, "tokens_per_second": 99.0})
