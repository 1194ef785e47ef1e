"""Reads back what evaluation and training left on disk; what is broken or cut short is named, never guessed at."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from koir.errors import ResultError
from koir.evaluation.metrics import KS, evaluate_run
from koir.evaluation.published import METRIC, NUMBER, Published, read_published
from koir.evaluation.results import HEADLINE

NOT_RESULTS = ("pipeline.json", "run.json")
SHOWN = max(KS)  # no metric looks at deeper ranks
# What the board reads of a result's block and of its pipeline besides names, where it is not null.
BLOCK = {"queries": int, "milliseconds_per_query": NUMBER, "candidate_recall": NUMBER}
BLOCK |= {"pipeline_key": str, "task_fingerprint": str}
PIPELINE = {"reranker": str, "depth": int}


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
        lacking = [name for name in HEADLINE if name not in metrics]
        stage, intervals = block["pipeline"]["first_stage"], block["intervals"]
        bounds = [bound for low, high in intervals.values() for bound in (low, high)]
        name = block.get("name") or file.parent.name
        odd = _odd(block, BLOCK) + _odd(block["pipeline"], PIPELINE) + _odd_sizes(block.get("parameters"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        expected = "scores of one split and subset, and a koir block with pipeline and intervals"
        raise ResultError(str(file), f"something missing or of another kind ({error!r})", expected) from None
    if lacking or not all(isinstance(text, str) for text in (task, split, stage, name)):
        raise ResultError(str(file), f"no {', '.join(lacking) or 'names'}", "a complete result")
    if odd or not _encodes([task, split, stage, name]):
        raise ResultError(
            str(file), f"{', '.join(odd) or 'a name'} of another kind", "a result as evaluate.py writes it"
        )
    for number in [*metrics.values(), *bounds]:
        if not isinstance(number, NUMBER) or not 0 <= number <= 1:
            raise ResultError(str(file), f"the score {number!r}", "numbers from 0 to 1")
    return Stored(file, name, task, split, metrics, block)


def _odd(values: dict, kinds: dict) -> list[str]:
    """The names whose value is there and of another kind: text that is none, a number that is not finite."""
    known = [name for name in kinds if values.get(name) is not None]
    return [name for name in known if not _of_kind(values[name], kinds[name])]


def _odd_sizes(parameters: object) -> list[str]:
    sizes = parameters.values() if isinstance(parameters, dict) else [parameters]
    return [] if all(size is None or _finite(size) for size in sizes) else ["parameters"]


def _of_kind(value: object, kind: type | tuple) -> bool:
    return isinstance(value, str) and _encodes([value]) if kind is str else isinstance(value, kind) and _finite(value)


def _encodes(texts: list[str]) -> bool:
    """Whether texts can be shown: JSON lets half of a surrogate pair through."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


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
                rows.append(_query_row(line))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        expected = "a line a query: query_id, relevant, top, scores"
        raise ResultError(
            f"{stored.queries_file}, line {len(rows) + 1}", f"nothing readable ({error})", expected
        ) from None
    wanted = stored.koir.get("queries", len(rows))
    if len(rows) != wanted:
        raise ResultError(str(stored.queries_file), f"{len(rows)} queries", f"{wanted}, as the result beside it says")
    return rows


def _query_row(line: str) -> dict:
    """One line as a row; raises what Python raises for one that is none."""
    row = json.loads(line)
    relevant, top, grades = row["relevant"], row["top"], _grades(row)
    if not all(isinstance(listed, list) for listed in (relevant, top, grades)):
        raise TypeError("no lists of ids and grades")
    if len(top) != len(row["scores"]) or not relevant or len(grades) != len(relevant):
        raise ValueError("top and scores, or relevant and grades, of unequal length, or nothing relevant")
    if not all(isinstance(grade, int) and abs(grade) < 2**31 for grade in grades):
        raise ValueError("grades that are no whole numbers")
    if not _encodes([row["query_id"], *relevant, *top]):  # TypeError where one is no text
        raise ValueError("half of a surrogate pair in an id")
    return row


def _grades(row: dict) -> list[int]:
    return row.get("grades") or [1] * len(row["relevant"])


def per_query(rows: list[dict], shorter: int | None = None) -> dict[str, dict[str, float]]:
    """query id -> metrics, from per-query rows, by the code that scored them.

    shorter: instead of the ranking, the best any reranker could make of its first so many candidates (the ceiling).
    """
    qrels, run = {}, {}
    for row in rows:
        query = row["query_id"]
        qrels[query] = dict(zip(row["relevant"], _grades(row), strict=True))
        top = row["top"][: shorter or SHOWN]
        if shorter:
            top = sorted(top, key=lambda document: -qrels[query].get(document, 0))[:SHOWN]
        run[query] = {document: float(-rank) for rank, document in enumerate(top)}  # ties were broken when written
    return evaluate_run(qrels, run)


def training_runs(outputs: Path) -> Iterator[TrainingRun]:
    """Every run folder that has a metrics.jsonl, newest first."""
    files = [file for file in Path(outputs).glob("*/metrics.jsonl") if file.is_file()]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        lines, skipped = [], 0
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = {name: value for name, value in json.loads(text).items() if _finite(value) and _encodes([name])}
                lines.append(line | {"step": line["step"]})
            except (ValueError, KeyError, AttributeError, RecursionError):
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
            with contextlib.suppress(OSError):  # a link to nothing
                state = file.stat()
                found.update(os.fsencode(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n"))
    return found.hexdigest()


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(str(file), f"no readable JSON ({error})", "one JSON object") from None
    if not isinstance(content, dict):
        raise ResultError(str(file), type(content).__name__, "one JSON object")
    return content


def _finite(value: object) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool) and abs(value) < 1e300
