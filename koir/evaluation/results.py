"""Results on disk in mteb's format with a block of our own.

    results/<pipeline>/<task>.json            one pipeline on one task; of a further split: <task>.<split>.json
    results/<pipeline>/<task>.queries.jsonl   one line a query: {query_id, relevant: [id], top: [id], scores: [number]},
                                              and grades, beside relevant, where not every answer's is 1
    results/<pipeline>/pipeline.json          what `--pipeline FILE` and `scripts/serve.py` read
    results/<pipeline>/run.json               written last: command, versions, wall seconds

<pipeline> is `bm25`, `dense-RUN`, `hybrid-RUN`, `hybrid-RUN-rrf`, `hybrid-RUN-w0.5` of a weight
that was given, and with a reranker `<first stage>+<reranker>@<depth>`; after it `p<tokens>` where documents are read in
passages, and `~mixed` where the first stage's score has a share in the final one.

<task>.json has mteb's keys: task_name, dataset_revision (the task's fingerprint), mteb_version, evaluation_time, and
scores: {split: [{ndcg_at_k, recall_at_k, precision_at_k, mrr_at_k, hit_rate_at_k, f1_at_k for k in 1, 3, 5, 10;
main_score, hf_subset, languages}]}. Beside them `koir`:

    name              the pipeline's folder name
    pipeline          the content of pipeline.json: first_stage, index_uri, fusion, weight, reranker, depth,
                      interpolate, normalise, score_map, chosen_on, passage_tokens (every key always there, null
                      where idle)
    key               sha256 of weights, data and settings: a result is used again only while this stays the same
    pipeline_key      sha256 of weights and settings alone: results of one name and another key are of another pipeline
    task_fingerprint  sha256 of queries, answers and corpus; documents, queries: how many
    candidate_recall  share of right answers among the `depth` candidates: what no reranker can exceed
    latency           {index_seconds, first_stage_ms, reranker_ms (null without), total_ms: a query; pairs_per_second}
    milliseconds_per_query   latency.total_ms again
    parameters        {first_stage, reranker}: how many weights; 0 for BM25 and without a reranker
    tied_queries      queries with two equal float32 scores among their first eleven (order by id there, as trec_eval)
    intervals         {ndcg_at_10, recall_at_10, mrr_at_10: [low, high]}, 95% bootstrap
    comparisons       [{against: a pipeline's name, metric: ndcg_at_10 (a smaller k where a reranker's depth is below
                      10), difference, interval: [low, high], p, won, lost, tied}]; with a reranker the first is its
                      own first stage; else every first stage listed before it
"""

import hashlib
import json
import os
import re
from pathlib import Path

from koir.evaluation.metrics import mean_scores
from koir.evaluation.significance import interval
from koir.manifest import write_json, written_aside
from koir.retrieval.ranking import ranked

HEADLINE = ("ndcg_at_10", "recall_at_10", "mrr_at_10")


def result(
    task: str, split: str, scores: dict[str, dict[str, float]], seconds: float, koir: dict, subset: str = "default"
) -> dict:
    """One task's result: mteb's keys, and `koir` for pipeline, intervals, latency and origin.

    scores: query id -> metrics, from `metrics.evaluate_run`. seconds: the whole evaluation's. subset: mteb's hf_subset.
    """
    means = mean_scores(scores)
    intervals = {name: interval([of_query[name] for of_query in scores.values()]) for name in HEADLINE}
    row = means | {"main_score": means["ndcg_at_10"], "hf_subset": subset, "languages": ["kor-Hang"]}
    return {
        "task_name": task,
        "dataset_revision": koir["task_fingerprint"],
        "mteb_version": None,
        "evaluation_time": seconds,
        "scores": {split: [row]},
        "koir": koir | {"queries": len(scores), "intervals": intervals},
    }


def write_result(folder: Path, content: dict, run: dict[str, dict[str, float]], qrels: dict, top: int = 100) -> Path:
    """Write <folder>/<task>.json, and per-query rows beside it: ids and scores, no texts. Returns the JSON's path."""
    (split,) = content["scores"]
    stem = file_stem(folder, content["task_name"], split)
    file = folder / f"{stem}.json"
    same = _koir(file).get("key") == content["koir"].get("key")
    if not same:  # a kill in between would leave its scores beside rows of this
        file.unlink(missing_ok=True)
    with written_aside(folder / f"{stem}.queries.jsonl") as aside, aside.open("w", encoding="utf-8") as out:
        for query, answers in qrels.items():
            found = run.get(query, {})
            best = ranked(found)[:top]
            row = {"query_id": query, "relevant": sorted(answers)}
            if set(answers.values()) != {1}:
                row["grades"] = [answers[document] for document in row["relevant"]]
            row |= {"top": best, "scores": [found[document] for document in best]}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_json(file, content)
    return file


def _koir(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["koir"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def file_stem(folder: Path, task: str, split: str) -> str:
    """What a result's files begin with: the task's name, and the split where that file holds another one's."""
    try:
        there = json.loads((folder / f"{task}.json").read_text(encoding="utf-8"))["scores"]
    except (OSError, ValueError, TypeError, KeyError):
        there = [split]
    return task if split in there else f"{task}.{split}"


def kept_result(folder: Path, task: str, split: str, key: str) -> tuple[dict, dict[str, dict[str, float]]] | None:
    """A result's JSON and run as `write_result` left them, where it has this key; None where it is not there, whole."""
    stem = file_stem(folder, task, split)
    try:
        content = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        if content["koir"]["key"] != key:
            return None
        with (folder / f"{stem}.queries.jsonl").open(encoding="utf-8") as lines:  # ids may hold other line ends
            rows = [json.loads(line) for line in lines]
        run = {row["query_id"]: dict(zip(row["top"], row["scores"], strict=True)) for row in rows}
        return (content, run) if len(run) == content["koir"]["queries"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def what_is_replaced(folder: Path, task: str, split: str, fingerprint: str, interpolate: float | None) -> str | None:
    """What a new result takes the place of, where that is of other data or another share: a note, else None.

    interpolate: the reranker's share, where the user gave it.
    """
    file = folder / f"{file_stem(folder, task, split)}.json"
    there = _koir(file)
    if not there:
        return None
    was = dict(there.get("pipeline") or {}).get("interpolate")
    kept = "is replaced (--output_dir keeps both)"
    if there.get("task_fingerprint") != fingerprint:
        return f"note: {file} was of other data under the same name, and {kept}"
    if interpolate not in (None, was):
        return f"note: {file} was of --interpolate {was}, and {kept}"
    return None


def file_name(pipeline: str) -> str:
    """A pipeline's name as a folder name: `dense:outputs/RUN` becomes `dense-RUN`.

    A folder that lies elsewhere or is called demo, a hub name that would read as a folder in outputs/, and names that
    end as a pipeline's do (-rrf, -w0.3) or have its @ get a piece of a hash, so that two of one name never share
    results.
    """
    kind, _, path = pipeline.partition(":")
    outputs, as_pipeline = Path("outputs").resolve(), re.compile(r"-rrf$|-w[\d.]+$|@")
    if not path or not Path(path).is_dir():
        name = "-".join(part for part in path.split("/") if part not in ("", ".", ".."))
        where = path if as_pipeline.search(name) or ("/" in path and (outputs / name).is_dir()) else ""
    else:
        folder = Path(path).resolve()
        folder = folder.parent if folder.name == "model" else folder
        name, alone = folder.name, folder.parent == outputs and folder.name != "demo"
        where = "" if alone and not as_pipeline.search(name) else str(folder)
    return "-".join(filter(None, [kind, name, where and hashlib.sha256(os.fsencode(where)).hexdigest()[:6]]))
