"""Evaluation tasks: a BEIR folder on disk, the bundled demo, or one of mteb's Korean tasks by name."""

import csv
import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from koir.errors import TaskError, nearest_beside
from koir.evaluation.hub import KOREAN, load_korean
from koir.manifest import DEMO


@dataclass
class Task:
    """One split of a task: queries and corpus (title and text joined) by id, qrels as query id -> {id: grade}.

    candidates: query id -> document ids, where the task itself says what is to be ranked (reranking tasks). subset:
    mteb's name for this part of a task of its own.
    """

    name: str
    split: str
    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]] | None = None
    subset: str = "default"


def load_task(path: str, split: str = "test", data_root: str | None = None) -> Task:
    """Read a BEIR folder (corpus.jsonl, queries.jsonl, either gzipped, and qrels/<split>.tsv), `demo`, or an mteb task.

    Only queries with a right answer in the split are kept. An mteb task without this split gives its own first one;
    data_root: where its copy lies, None asks the hub. Raises TaskError with file, line and what was expected.
    """
    (task,) = load_splits(path, [split], data_root)
    return task


def load_splits(path: str, wanted: Sequence[str], data_root: str | None = None) -> list[Task]:
    """Several splits of a task, each as `load_task` gives it or refuses it; a BEIR folder's texts are read once."""
    if path in KOREAN and not Path(path).is_dir():
        known = KOREAN[path][1]
        there = [split if split in known else known[0] for split in wanted]
        return [Task(path, split, *load_korean(path, split, data_root), KOREAN[path][0]) for split in there]
    folder = place_of(path)
    if not folder.is_dir():
        wanted = "a BEIR folder, demo or an mteb task" + nearest_beside(folder, KOREAN)
        raise TaskError(f"task {path}", "no such folder", wanted)
    qrels = [_qrels(folder, split) for split in wanted]
    queries = {row["_id"]: row["text"] for row in _rows(_file(folder, "queries.jsonl"))}
    corpus = load_corpus(path)
    name = "demo" if path == "demo" else unicodedata.normalize("NFC", folder.resolve().name)
    return [
        _split(name, split, queries, corpus, of_split, folder) for split, of_split in zip(wanted, qrels, strict=True)
    ]


def _split(name: str, split: str, queries: dict, corpus: dict, graded: dict, folder: Path) -> Task:
    qrels: dict[str, dict[str, int]] = {}
    for (query, document), (grade, number) in graded.items():
        if grade > 0:
            place = (str(_qrels_file(folder, split)), number)
            query = _known(query, queries, *place, "query", "queries.jsonl")
            qrels.setdefault(query, {})[_known(document, corpus, *place, "document", "corpus.jsonl")] = grade
    return Task(name, split, {query: queries[query] for query in qrels}, corpus, qrels)


def _known(name: str, texts: dict[str, str], file: str, number: int, what: str, where: str) -> str:
    """An id of qrels as the file of texts writes it, its Hangul whole (NFC) or in parts (NFD)."""
    if name in texts:
        return name
    ways = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    if (found := next((way for way in ways if way in texts), None)) is None:
        raise TaskError(f"{file}, line {number}", f"{what} {name!r}", f"an _id of {where}")
    return found


def load_corpus(path: str) -> dict[str, str]:
    """The corpus of a BEIR folder or `demo`, or a .jsonl[.gz] file of {_id, title, text}: id -> title and text.

    Raises TaskError with file, line and what was expected.
    """
    folder = place_of(path)
    if not folder.exists():
        wanted = "a BEIR folder, demo, or a .jsonl[.gz] file" + nearest_beside(folder)
        raise TaskError(f"corpus {path}", "no such file or folder", wanted)
    file, corpus = _file(folder, "corpus.jsonl") if folder.is_dir() else folder, {}
    if not file.name.lower().endswith((".jsonl", ".jsonl.gz")):
        raise TaskError(f"corpus {path}", "an unknown ending", ".jsonl or .jsonl.gz, lines of {_id, title, text}")
    for row in _rows(file):
        title = row.get("title") or ""
        corpus[row["_id"]] = (
            f"{title}\n{row['text']}".strip() if title not in row["text"][: len(title)] else row["text"]
        )
    if not corpus:
        raise TaskError(str(file), "no documents", "at least one")
    return corpus


def splits(path: str) -> list[str]:
    """The names of a task's splits."""
    if path in KOREAN and not Path(path).is_dir():
        return KOREAN[path][1]
    return _splits(place_of(path))


def _splits(folder: Path) -> list[str]:
    """The splits of a BEIR folder, by the names in qrels/."""
    found = {file.name.removesuffix(".gz").removesuffix(".tsv") for file in (folder / "qrels").glob("*.tsv*")}
    return sorted(split for split in found if _qrels_file(folder, split).is_file())


def _qrels_file(folder: Path, split: str) -> Path:
    plain = folder / "qrels" / f"{split}.tsv"
    return plain if plain.is_file() else plain.with_name(f"{split}.tsv.gz")


def place_of(path: str) -> Path:
    """Where a task or corpus lies, its Hangul written as a system writes it: whole (NFC) or in parts (NFD)."""
    if path == "demo":
        return DEMO / "beir"
    ways = [Path(path), *(Path(unicodedata.normalize(form, path)) for form in ("NFC", "NFD"))]
    return next((way for way in ways if way.exists()), ways[0])


def _file(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise TaskError(str(folder), f"no {name} or {name}.gz", "a BEIR folder: corpus.jsonl, queries.jsonl, qrels/")


def _rows(file: Path) -> Iterator[dict]:
    seen: set[str] = set()
    number = blank = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    blank = blank or number
                    continue
                if blank:  # at the end alone they are nothing
                    raise TaskError(f"{file}, line {blank}", "an empty line", "one JSON object a line")
                row = _row(line, "utf-8-sig" if number == 1 else "utf-8", f"{file}, line {number}")
                if row["_id"] in seen:
                    raise TaskError(f"{file}, line {number}", f"_id {row['_id']!r} again", "each _id once")
                seen.add(row["_id"])
                yield row
    except (zlib.error, EOFError, OSError) as error:
        raise TaskError(f"{file}, after line {number}", f"unreadable data ({error})", "a complete file") from None


def _row(line: bytes, encoding: str, place: str) -> dict:
    """{_id, text} and perhaps title of a line, texts in NFC. Raises TaskError for anything else."""
    try:
        row = json.loads(line.decode(encoding))
    except (ValueError, RecursionError) as error:
        raise TaskError(place, f"broken JSON or UTF-8 ({error})", "one JSON object a line") from None
    if not isinstance(row, dict):
        raise TaskError(place, type(row).__name__, '{"_id": "...", "text": "..."}')
    if type(row.get("_id")) is int:
        row["_id"] = str(row["_id"])
    for key in ("_id", "text"):
        if not isinstance(row.get(key), str):
            found = type(row[key]).__name__ if row.get(key) is not None else "nothing"
            among = f" among {', '.join(row)}"[:100] if key not in row else ""
            raise TaskError(f"{place}, field {key}", found + among, "a text")
    if re.search("[\ud800-\udfff]", "".join(value for value in row.values() if isinstance(value, str))):
        raise TaskError(place, "half of a surrogate pair", "valid Unicode")
    if not isinstance(row.get("title") or "", str):
        raise TaskError(f"{place}, field title", type(row["title"]).__name__, "a text")
    kept = {key: unicodedata.normalize("NFC", row[key]) for key in ("title", "text") if row.get(key)}
    return kept | {"_id": row["_id"], "text": unicodedata.normalize("NFC", row["text"])}


def _qrels(folder: Path, split: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(query, document) -> grade, and the line that it stands in."""
    file = _qrels_file(folder, split)
    if not file.is_file():
        there = ", ".join(_splits(folder))
        if not there:
            expected = "qrels/test.tsv (or another split's): query-id, corpus-id and score"
            raise TaskError(f"{folder}", "no qrels/*.tsv", expected)
        raise TaskError(
            f"{folder}", f"no split {split!r} (there are: {there})", f"qrels/{split}.tsv, or a split that is there"
        )
    graded: dict[tuple[str, str], tuple[int, int]] = {}
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            lines = list(enumerate(reader, 1))
            while lines and not lines[-1][1]:  # empty lines at the end
                lines.pop()
            for number, row in lines:
                if number == 1 and row[:1] == ["query-id"]:
                    continue
                if len(row) != 3 or not re.fullmatch(r"-?[0-9]{1,9}(\.0)?", row[2]):
                    raise TaskError(
                        f"{file}, line {number}", "\t".join(row)[:60], "query-id, corpus-id and a whole number"
                    )
                given = int(row[2].removesuffix(".0"))  # some programs write whole numbers so
                grade, first = graded.setdefault((row[0], row[1]), (given, number))
                if grade != given:
                    found = f"grade {row[2]} for {row[0]!r} and {row[1]!r}"
                    raise TaskError(f"{file}, line {number}", found, f"{grade}, as in line {first}")
        except (UnicodeDecodeError, csv.Error, zlib.error, EOFError, OSError) as error:
            raise TaskError(str(file), f"broken text ({error})", "UTF-8 lines with tabs") from None
    if not any(grade > 0 for grade, _ in graded.values()):
        raise TaskError(str(file), "no right answers", "at least one line with a score above 0")
    return graded
