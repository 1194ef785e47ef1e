"""Reads back what evaluation and training left on disk; what is broken or cut short is named, never guessed at."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from koir.errors import ResultError
from koir.evaluation.metrics import KS, evaluate_run
from koir.evaluation.published import METRIC, Published, read_published

NOT_RESULTS = ("pipeline.json", "run.json")
SHOWN = max(KS)  # no metric looks at deeper ranks


@dataclass(frozen=True)
class Stored:
    """One results/<pipeline>/<task>.json: the pipeline's name, the task, its split, the metrics, and our block."""

    file: Path
    name: str
    task: str
    split: str
    metrics: dict[str, float]
    koir: dict

    @property
    def queries_file(self) -> Path:
        """Where its per-query rows lie."""
        return self.file.with_suffix(".queries.jsonl")


@dataclass(frozen=True)
class TrainingRun:
    """One run folder. lines: metrics.jsonl's; facts: run.json's, empty while it trains; skipped: broken lines."""

    name: str
    lines: list[dict]
    facts: dict
    skipped: int


def result_files(folder: Path) -> list[Path]:
    """The result files under a folder: <pipeline>/<task>.json, published tables and expected scores left out."""
    files = [file for file in Path(folder).glob("*/*.json") if file.name not in NOT_RESULTS]
    return sorted(file for file in files if file.parent.name not in ("published", "expected"))


def read_result(file: Path) -> Stored:
    """One result. Raises ResultError with the file and what it lacks."""
    content = _json(file)
    try:
        ((split, rows),) = content["scores"].items()
        (row,) = rows
        block, task = content["koir"], content["task_name"]
        metrics = {name: value for name, value in row.items() if METRIC.fullmatch(name)}
        lacking = [name for name in ("ndcg_at_10", "recall_at_10", "mrr_at_10") if name not in metrics]
        stage, intervals = block["pipeline"]["first_stage"], block["intervals"]
        bounds = [bound for low, high in intervals.values() for bound in (low, high)]
        name = block.get("name") or file.parent.name
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = "scores of one split and subset, and a koir block with pipeline and intervals"
        raise ResultError(str(file), f"something missing or of another kind ({error!r})", expected) from None
    if lacking or not all(isinstance(text, str) for text in (task, split, stage, name)):
        raise ResultError(str(file), f"no {', '.join(lacking) or 'names'}", "a complete result")
    for number in [*metrics.values(), *bounds]:
        if not isinstance(number, (int, float)) or not 0 <= number <= 1:
            raise ResultError(str(file), f"the score {number!r}", "numbers from 0 to 1")
    return Stored(file, name, task, split, metrics, block)


def read_results(folder: Path) -> tuple[list[Stored], list[Published], list[ResultError]]:
    """All results and published tables under a folder, and what could not be read."""
    stored, published, broken = [], [], []
    for kept, reader, files in (
        (stored, read_result, result_files(folder)),
        (published, read_published, sorted(Path(folder).glob("published/*.json"))),
    ):
        for file in files:
            try:
                kept.append(reader(file))
            except ResultError as error:
                broken.append(error)
    return stored, published, broken


def query_rows(stored: Stored) -> list[dict]:
    """The per-query rows of a result. Raises ResultError for a missing, broken or incomplete file."""
    rows = []
    try:
        with stored.queries_file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if len(row["top"]) != len(row["scores"]) or not row["relevant"] or not isinstance(row["query_id"], str):
                    raise ValueError("top and scores of unequal length, or nothing relevant")
                rows.append(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "a line a query: query_id, relevant, top, scores"
        raise ResultError(
            f"{stored.queries_file}, line {len(rows) + 1}", f"nothing readable ({error})", expected
        ) from None
    wanted = stored.koir.get("queries", len(rows))
    if len(rows) != wanted:
        raise ResultError(str(stored.queries_file), f"{len(rows)} queries", f"{wanted}, as the result beside it says")
    return rows


def per_query(rows: list[dict], shorter: int | None = None) -> dict[str, dict[str, float]]:
    """query id -> metrics, from per-query rows, by the code that scored them.

    shorter: instead of the ranking, the best any reranker could make of its first so many candidates (the ceiling).
    """
    qrels, run = {}, {}
    for row in rows:
        query = row["query_id"]
        qrels[query] = dict(zip(row["relevant"], row.get("grades") or [1] * len(row["relevant"]), strict=True))
        top = row["top"][: shorter or SHOWN]
        if shorter:
            top = sorted(top, key=lambda document: -qrels[query].get(document, 0))[:SHOWN]
        run[query] = {document: float(-rank) for rank, document in enumerate(top)}  # ties were broken when written
    return evaluate_run(qrels, run)


def training_runs(outputs: Path) -> Iterator[TrainingRun]:
    """Every run folder that has a metrics.jsonl, newest first."""
    files = sorted(Path(outputs).glob("*/metrics.jsonl"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        lines, skipped = [], 0
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                lines.append({name: value for name, value in line.items() if _finite(value)} | {"step": line["step"]})
            except (ValueError, KeyError, TypeError, AttributeError):
                skipped += 1  # cut short by an interruption
        try:
            facts = _json(file.parent / "run.json")
        except ResultError:
            facts = {}
        yield TrainingRun(file.parent.name, lines, facts, skipped)


def signature(*folders: Path) -> str:
    """Changes when any file that this module reads changes: a hash of paths, sizes and times."""
    found = hashlib.sha256()
    for folder in folders:
        patterns = ("*/*.json", "*/*.jsonl")
        for file in sorted(path for pattern in patterns for path in Path(folder).glob(pattern)):
            state = file.stat()
            found.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(str(file), f"no readable JSON ({error})", "one JSON object") from None
    if not isinstance(content, dict):
        raise ResultError(str(file), type(content).__name__, "one JSON object")
    return content


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
