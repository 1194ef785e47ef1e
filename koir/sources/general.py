"""Shapes of users' own data: SQuAD, BGE, CSV, triplets (MS MARCO among them), BEIR folders.

squad: question -> paragraph. bge: {query, pos, neg}. csv: a table with a query and a document column, and perhaps hard
negatives; ko-reranker's evaluation set (question, answer, doc_id, doc) gives question -> doc, and a FAQ that has
answers alone question -> answer. triplets: {query, document, hard_negative} as training reads them, or lines of query,
document, hard negative divided by tabs. beir: queries of the train split -> their right documents (`demo` is the
bundled one).
"""

import ast
import contextlib
import io
import tokenize
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from koir.errors import SourceError
from koir.evaluation.tasks import load_task
from koir.row_files import hub_records
from koir.sources.mrc import questions
from koir.sources.records import converted
from koir.sources.registry import Source
from koir.sources.tally import Tally
from koir.triplets import BGE, FIELDS

COLUMNS = {  # header names, lower case, that mean the same; the first that is there counts
    "query": ("query", "question", "anchor", "q", "질문", "질의", "질문내용"),
    "document": (
        "document",
        "doc",
        "positive",
        "pos",
        "passage",
        "context",
        "text",
        "문서",
        "본문",
        "지문",
        "answer",
        "답변",
        "답변내용",
        "내용",
        "정답",
        "답",
    ),
    "hard_negative": ("hard_negative", "hard_negatives", "negative", "negatives", "neg", "오답"),
}
NAMED = ("bge", "csv", "hub", "triplets")  # sources whose columns or fields may have names of the user's own
NOTHING = ("[]", "nan", "NaN", "None", "NULL", "null")  # what programs write into a cell that is empty
UNREAD = "not read: the column"
ROWS = r"\.(jsonl|ndjson|json|parquet)"
OURS = r"(run|report|plan|part-\d+)\.json"  # what commands here write beside rows


def _table_row(record: dict, place: str, tally: Tally, source: str) -> Iterator[dict]:
    try:
        yield from _row_of_table(record, place, tally, source)
    except SourceError:
        if ", sheet " not in place:
            raise
        tally.drop(f"in a sheet of the columns {', '.join(record)}"[:120], place)  # a cover, say


def _row_of_table(record: dict, place: str, tally: Tally, source: str) -> Iterator[dict]:
    record = _as_named(record, place, tally, set(tally.columns))
    record = {name.lower(): value for name, value in record.items()}
    used = _used(record)
    row = {field: None if name is None else record[name] for field, name in used.items()}
    row |= {field: _listed(row[field]) for field in ("document", "hard_negative") if row[field]}
    for field in ("query", "document"):
        if row[field] is None:
            columns = f"the columns {', '.join(record)}"
            if len(record) == 1 and (mark := next((mark for mark in ";\t|" if mark in columns), None)):
                raise SourceError(place, f"{mark!r} between the cells of {columns[12:]!r:.60}", "commas (.tsv: tabs)")
            expected = f"one of {', '.join(COLUMNS[field])} for the {field}, or --columns {field}=NAME"
            raise SourceError(place, columns, expected)
    _note_unread(tally, set(record) - set(used.values()) - {"id"})
    yield {**row, "hard_negative": row["hard_negative"] or None, "source": source, "id": record.get("id")}


def _row(record: dict, place: str, tally: Tally, source: str) -> Iterator[dict]:
    record = _as_named(record, place, tally, set(tally.columns) - {"hard_negative"})
    if "query" not in record or not {"document", "pos"} & set(record):  # as {anchor, positive}, {question, answer}
        record = _with_fields(record)
    if "query" not in record:
        expected = "query and document, or query, pos and neg, or --columns query=NAME"
        raise SourceError(place, f"the fields {', '.join(record)}"[:160], expected)
    _note_unread(tally, set(record) - FIELDS - set(BGE))
    row = record | {"source": record.get("source") or source}
    for field in ("hard_negative", "neg"):
        texts = row.get(field)
        if isinstance(texts, (str, list)) and row.get(f"{field}_score") is None and row.get(f"{field}_scores") is None:
            row[field] = _there(texts)
    yield row


def _as_named(record: dict, place: str, tally: Tally, needed: set[str]) -> dict:
    """A record with the columns that the user named under the names of fields.

    Those of `needed` must be there, or the fields themselves, as in a source beside the one that was meant.
    """
    there = {field: name for field, name in tally.columns.items() if name in record}
    for field in sorted(needed - set(there)):
        if not set(COLUMNS[field]) & {name.lower() for name in record}:
            found = f"the columns {', '.join(record)}"[:160]
            raise SourceError(place, found, f"{tally.columns[field]!r}, as --columns names the {field}")
    others = {name: value for name, value in record.items() if name not in there.values()}
    return others | {field: record[name] for field, name in there.items()}


def _used(record: dict) -> dict[str, str | None]:
    """The first column of a record for each field of a row, None where it has none."""
    return {field: next((name for name in names if name in record), None) for field, names in COLUMNS.items()}


def _with_fields(record: dict) -> dict:
    """A record under the names of a row's fields, where all that a row needs is there under other names."""
    used = {name: field for field, name in _used(record).items() if name}
    if not {"query", "document"} <= set(used.values()):
        return record
    return {used.get(name, name): value for name, value in record.items()}


def _listed(cell: str) -> str | list[str]:
    """A cell's text, or its texts where it is a list of them, as JSON, pandas or numpy (no commas) write it.

    "" for one that says none.
    """
    if cell in NOTHING:
        return ""
    if cell.startswith(("['", '["')) and cell.endswith(("']", '"]')):
        with contextlib.suppress(ValueError, SyntaxError, tokenize.TokenError):
            tokens = [*tokenize.generate_tokens(io.StringIO(cell).readline)]
            if all(token.type != tokenize.OP or token.string in "[,]" for token in tokens):
                return [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    return cell


def _note_unread(tally: Tally, names: set[str]) -> None:
    """Count the records that have a column or field of a name that is not read."""
    for name in sorted(names):
        tally.notes[f"{UNREAD} {name!r:.60}"] += 1


def _there(texts: str | list) -> list:
    """Hard negatives without those that are missing: null or a text without a character."""
    listed = [texts] if isinstance(texts, str) else texts
    return [text for text in listed if text is not None and not (isinstance(text, str) and not text.strip())]


def _numbered(record: dict, place: str, tally: Tally) -> Iterator[dict]:
    texts = list(record.values())
    if len(texts) == 1:
        tally.drop("a line without a tab between query and document", place)
    elif all(text.lower() in COLUMNS[field] for text, field in zip(texts[:2], COLUMNS, strict=False)):
        tally.drop("a header (csv=PATH reads tables that have one)", place)
    elif any(text.isdecimal() for text in texts[:2]):
        tally.drop("an id, or another number, in place of a text", place)
    else:
        given = _there(texts[2:])
        negatives = [text for text in given if not text.isdecimal()]
        if len(negatives) < len(given):
            tally.notes["numbers in place of hard negatives"] += len(given) - len(negatives)
        yield {"query": texts[0], "document": texts[1], "hard_negative": negatives, "source": "triplets"}


def _read_triplets(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    yield from converted(path, tally, rf"(^|/)(?!{OURS}$)[^/]*{ROWS}", partial(_row, source="triplets"))
    aside = tally.ignored
    tally.ignored = []
    yield from converted(path, tally, r"\.(tsv|txt)", _numbered, header=False)
    tally.ignored = [name for name in tally.ignored if name in aside]


def _read_beir(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    task = load_task(str(path), "train")
    tally.files.append("qrels/train.tsv")
    for query, answers in task.qrels.items():
        tally.records["train"] += 1
        documents = [task.corpus[document] for document in answers]
        place = f"{path}/qrels/train.tsv, query {query}"
        yield {"query": task.queries[query], "document": documents, "source": f"{task.name}/train", "id": query}, place


def _read_hub(path: Path, tally: Tally) -> Iterator[tuple[dict, str]]:
    tally.files.append(str(path))
    for record, place in hub_records(str(path), "--hub"):
        tally.records["train"] += 1
        for row in _row(record, place, tally, str(path)):
            yield row, place


YOURS = ("your own data", "as you got it")
SOURCES = [
    Source(
        "squad", "General", "SQuAD-shaped: question -> paragraph", *YOURS, "any .json of SQuAD's shape",
        partial(converted, wanted=ROWS, convert=partial(questions, source="squad")),
    ),
    Source(
        "bge", "General", "BGE-shaped: {query, pos: [...], neg: [...]}", *YOURS, ".jsonl, .json or .parquet",
        partial(converted, wanted=ROWS, convert=partial(_row, source="bge")),
    ),
    Source(
        "csv", "General", "a table with query and document columns", *YOURS,
        ".csv, .tsv or .xlsx with a header (question, answer, doc_id, doc among others)",
        partial(converted, wanted=r"\.(csv|tsv|xlsx)", convert=partial(_table_row, source="csv"), quoted=True),
    ),
    Source(
        "triplets", "General", "{query, document, hard_negative}, or such lines divided by tabs (translated MS MARCO)",
        *YOURS, ".jsonl, .json, .parquet, or .tsv without a header", _read_triplets,
    ),
    Source(
        "beir", "General", "a BEIR folder (or demo): query -> right documents of the train split", *YOURS,
        "corpus.jsonl, queries.jsonl, qrels/train.tsv", _read_beir,
    ),
    Source(
        "hub", "General", "--hub NAME: rows of a hub dataset, such as the published corpus",
        "https://huggingface.co/datasets/nlpai-lab/ko-triplet-v1.0", "as its card says", "columns of rows", _read_hub,
    ),
]  # fmt: skip
