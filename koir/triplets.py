"""Rows (JSONL, Parquet, hub dataset) become checked (query, document, hard negatives) pairs on disk."""

import hashlib
import itertools
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from koir.errors import RowError
from koir.manifest import DEMO, cache_folder, write_json, written_aside
from koir.row_files import file_records, hub_records, is_hub_name, source_key

FORMAT = "3"  # part of the cache key: raise it when SCHEMA or a check changes
FIELDS = {"query", "document", "hard_negative", "document_score", "hard_negative_score", "source", "id"}
BGE = {"pos": "document", "neg": "hard_negative", "pos_scores": "document_score", "neg_scores": "hard_negative_score"}
BLANK = re.compile(r"[\s\u00ad\u115f\u1160\u200b-\u200f\u2060\u3164\ufeff\uffa0]*")  # nothing that is seen
SCHEMA = pa.schema(
    {
        "query": pa.string(),
        "document": pa.string(),
        "hard_negatives": pa.list_(pa.string()),
        "right_answers": pa.list_(pa.int64()),  # hashes of every document of the row, this one included
        "document_score": pa.float64(),
        "hard_negative_scores": pa.list_(pa.float64()),
        "source": pa.string(),
        "id": pa.string(),
    }
)


@dataclass
class Triplets:
    """Checked pairs, memory-mapped.

    pairs: one record a (query, document) pair, columns as in SCHEMA. fingerprint: sha256 over the pairs in order, ids
    apart. counts: rows read, pairs kept, duplicates dropped, rows per source, columns ignored.
    """

    pairs: datasets.Dataset
    fingerprint: str
    counts: dict


def text_hash(text: str) -> int:
    """A signed 64-bit hash of a text, equal on every process and machine, and for texts that differ in white space."""
    content = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def load_triplets(sources: list[str]) -> Triplets:
    """Check every row of `sources` (files, hub names or `demo`), in order, and memory-map the pairs.

    The result is cached by the content of the sources, so a second run starts at once.
    Raises RowError at the first bad row, with file, line and field.
    """
    files = [DEMO / "triplets.jsonl" if s == "demo" else Path(s) for s in sources]
    names = [s for s, f in zip(sources, files, strict=True) if not is_hub_name(s, f)]
    key = hashlib.sha256(FORMAT.encode())
    for source, file in zip(sources, files, strict=True):
        key.update(source_key(source, file))
    path = cache_folder() / f"pairs-{key.hexdigest()[:24]}.arrow"
    if not path.exists():
        readers = (file_records(f) if s in names else hub_records(s) for s, f in zip(sources, files, strict=True))
        _write_pairs((record for reader in readers for record in reader), path)
    pairs = datasets.Dataset.from_file(str(path))
    counts = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    if not len(pairs):
        raise RowError(", ".join(sources), "no rows", "at least one row with query and document")
    return Triplets(pairs, counts.pop("fingerprint"), counts)


def listed(texts: str | list[str] | None) -> list[str]:
    """The texts of a row's field: one, several or none."""
    return [] if texts is None else [texts] if isinstance(texts, str) else texts


def report(counts: dict) -> str:
    """What was read and what was dropped, in one line for people."""
    line = f"{counts['rows']:,} rows, {counts['pairs']:,} pairs, {counts['duplicates']:,} exact duplicates dropped"
    ignored = ", ".join(counts["ignored_columns"])
    return line + (f", columns ignored: {ignored}" if ignored else "")


def answers_of_repeated(pairs: datasets.Dataset) -> dict[str, list[int]]:
    """Queries that several pairs ask -> hashes of all that any of these calls a right answer."""
    table = (pairs if pairs._indices is None else pairs.flatten_indices()).data.table.select(["query", "right_answers"])
    counts = pc.value_counts(table["query"])
    repeated = counts.field(0).filter(pc.greater(counts.field(1), 1))
    asked = table.filter(pc.is_in(table["query"], value_set=repeated))
    answers: dict[str, set[int]] = {}
    for batch in asked.to_batches():
        for query, of_row in zip(batch["query"].to_pylist(), batch["right_answers"].to_pylist(), strict=True):
            answers.setdefault(query, set()).update(of_row)
    return {query: sorted(hashes) for query, hashes in answers.items()}


# --- one row ---------------------------------------------------------------------------------------------------------


def check_row(row: object, place: str) -> list[dict]:
    """Turn one raw row into its pairs (records of SCHEMA); `place` names file and line in errors.

    Accepts {query, document, hard_negative, ...} and BGE's {query, pos, neg}; text becomes NFC.
    Raises RowError for an empty, missing or mistyped field, and for a document that is also a hard negative.
    """
    if not isinstance(row, dict):
        raise RowError(place, f"{type(row).__name__}", "a JSON object with query and document")
    for theirs, ours in BGE.items():
        if row.get(theirs) is not None and row.get(ours) is not None:
            raise RowError(f"{place}, field {theirs}", f"{ours} beside it", "one of the two")
    row = {BGE.get(name, name): value for name, value in row.items() if value is not None}
    if row and "query" not in row and "document" not in row:
        found = f"the fields {', '.join(map(_shown, map(str, row)))}"[:160]
        raise RowError(place, found, "query and document; prepare_data.py --source bge=FILE reads other names, too")
    query = _text(row.get("query"), place, "query")
    documents = _texts(row.get("document"), place, "document")
    if not documents:
        raise RowError(f"{place}, field document", "nothing", "a text or a list of texts")
    negatives, negative_scores = row.get("hard_negative"), row.get("hard_negative_score")
    if isinstance(negatives, list):  # null is one that is missing, and what stands in its place is no score
        there = [text is not None for text in negatives]
        negatives = [*itertools.compress(negatives, there)]
        if isinstance(negative_scores, list) and len(negative_scores) == len(there):
            negative_scores = [*itertools.compress(negative_scores, there)]
    negatives = _texts(negatives, place, "hard_negative")
    right_answers = [text_hash(document) for document in documents]
    for negative in negatives:
        if text_hash(negative) in right_answers:
            raise RowError(f"{place}, field hard_negative", f"the document itself ({negative[:40]!r})", "another text")
    document_scores = _scores(row.get("document_score"), len(documents), place, "document_score")
    negative_scores = _scores(negative_scores, len(negatives), place, "hard_negative_score")
    source = None if row.get("source") is None else _text(row["source"], place, "source")
    shared = {
        "query": query,
        "hard_negatives": negatives,
        "right_answers": right_answers,
        "hard_negative_scores": negative_scores,
        "source": source,
        "id": None if row.get("id") is None else _shown(str(row["id"])),
    }
    scores = document_scores or [None] * len(documents)
    return [
        shared | {"document": document, "document_score": score}
        for document, score in zip(documents, scores, strict=True)
    ]


def _text(value: object, place: str, field: str) -> str:
    place = f"{place}, field {field}"
    if value is None:
        raise RowError(place, "nothing", "a text")
    if not isinstance(value, str):
        raise RowError(place, f"{type(value).__name__} ({str(value)[:40]})", "a text")
    if BLANK.fullmatch(value):
        raise RowError(place, "an empty text", "a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(place, "half of a surrogate pair", "valid Unicode") from None
    return unicodedata.normalize("NFC", value)


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _texts(value: object, place: str, field: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [_text(item, place, f"{field}[{i}]") for i, item in enumerate(value)]
    return [_text(value, place, field)]


def _scores(value: object, count: int, place: str, field: str) -> list[float] | None:
    if value is None:
        return None
    scores = value if isinstance(value, list) else [value]
    for score in scores:
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not number or abs(score) > 1e300 or not math.isfinite(score):
            raise RowError(f"{place}, field {field}", f"{type(score).__name__} ({score!r:.40})", "finite numbers")
    if len(scores) != count:
        raise RowError(f"{place}, field {field}", f"{len(scores)} numbers", f"{count}, one for each text")
    return [float(s) for s in scores]


# --- to disk ---------------------------------------------------------------------------------------------------------


def _write_pairs(records: Iterable[tuple[object, str]], path: Path) -> None:
    """Stream checked, deduplicated pairs into an Arrow file; both files appear complete or not at all."""
    seen: set[bytes] = set()
    fingerprint = hashlib.sha256()
    counts = Counter()
    sources, ignored = Counter(), set()
    with written_aside(path) as aside:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as out:
            batch: list[dict] = []
            for row, place in records:
                counts["rows"] += 1
                pairs = check_row(row, place)
                ignored |= {_shown(name) for name in set(row) - FIELDS - set(BGE)}
                for pair in pairs:
                    told = {name: value for name, value in pair.items() if name != "id"}
                    line = json.dumps(told, ensure_ascii=False, sort_keys=True).encode()
                    digest = hashlib.blake2b(line, digest_size=16).digest()
                    if digest in seen:
                        counts["duplicates"] += 1
                        continue
                    seen.add(digest)
                    fingerprint.update(digest)
                    sources[pair["source"] or "unnamed"] += 1
                    batch.append(pair)
                if len(batch) >= 1024:
                    out.write_batch(pa.RecordBatch.from_pylist(batch, SCHEMA))
                    batch = []
                if counts["rows"] % 200_000 == 0:
                    print(f"read {counts['rows']:,} rows", file=sys.stderr)
            out.write_batch(pa.RecordBatch.from_pylist(batch, SCHEMA))
        totals = {"rows": counts["rows"], "pairs": len(seen), "duplicates": counts["duplicates"]}
        totals |= {"sources": dict(sources), "ignored_columns": sorted(ignored), "fingerprint": fingerprint.hexdigest()}
        write_json(Path(f"{path}.json"), totals)
