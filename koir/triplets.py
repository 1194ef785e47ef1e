"""Rows (JSONL, Parquet, hub dataset) become checked (query, document, hard negatives) pairs on disk."""

import gzip
import hashlib
import json
import math
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from koir.errors import RowError, UserError, nearest
from koir.manifest import DEMO, cache_folder, write_json, written_aside

FORMAT = "2"  # part of the cache key: raise it when SCHEMA or a check changes
FIELDS = {"query", "document", "hard_negative", "document_score", "hard_negative_score", "source", "id"}
BGE = {"pos": "document", "neg": "hard_negative", "pos_scores": "document_score", "neg_scores": "hard_negative_score"}
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
    """A signed 64-bit hash of a text, equal on every process and machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def load_triplets(sources: list[str]) -> Triplets:
    """Check every row of `sources` (files, hub names or `demo`), in order, and memory-map the pairs.

    The result is cached by the content of the sources, so a second run starts at once.
    Raises RowError at the first bad row, with file, line and field.
    """
    files = [DEMO / "triplets.jsonl" if s == "demo" else Path(s) for s in sources]
    names = [s for s, f in zip(sources, files, strict=True) if not _is_hub_name(s, f)]
    key = hashlib.sha256(FORMAT.encode())
    for source, file in zip(sources, files, strict=True):
        key.update(_content_key(source, file))
    path = cache_folder() / f"pairs-{key.hexdigest()[:24]}.arrow"
    if not path.exists():
        readers = (_records(f) if s in names else hub_records(s) for s, f in zip(sources, files, strict=True))
        _write_pairs((record for reader in readers for record in reader), path)
    pairs = datasets.Dataset.from_file(str(path))
    counts = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    if not len(pairs):
        raise RowError(", ".join(sources), "no rows", "at least one row with query and document")
    return Triplets(pairs, counts.pop("fingerprint"), counts)


def report(counts: dict) -> str:
    """What was read and what was dropped, in one line for people."""
    line = f"{counts['rows']:,} rows, {counts['pairs']:,} pairs, {counts['duplicates']:,} exact duplicates dropped"
    ignored = ", ".join(counts["ignored_columns"])
    return line + (f", columns ignored: {ignored}" if ignored else "")


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
    query = _text(row.get("query"), place, "query")
    documents = _texts(row.get("document"), place, "document")
    if not documents:
        raise RowError(f"{place}, field document", "nothing", "a text or a list of texts")
    negatives = row.get("hard_negative")
    if isinstance(negatives, list):  # null is one that is missing
        negatives = [text for text in negatives if text is not None]
    negatives = _texts(negatives, place, "hard_negative")
    for negative in negatives:
        if negative in documents:
            raise RowError(f"{place}, field hard_negative", f"the document itself ({negative[:40]!r})", "another text")
    document_scores = _scores(row.get("document_score"), len(documents), place, "document_score")
    negative_scores = _scores(row.get("hard_negative_score"), len(negatives), place, "hard_negative_score")
    source = None if row.get("source") is None else _text(row["source"], place, "source")
    shared = {
        "query": query,
        "hard_negatives": negatives,
        "right_answers": [text_hash(document) for document in documents],
        "hard_negative_scores": negative_scores,
        "source": source,
        "id": None if row.get("id") is None else str(row["id"]),
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
    if not value.strip():
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


# --- files -----------------------------------------------------------------------------------------------------------


def _is_hub_name(source: str, file: Path) -> bool:
    return (
        source != "demo"
        and not file.exists()
        and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
        and not source.endswith((".jsonl", ".gz", ".json", ".parquet"))
    )


def _content_key(source: str, file: Path) -> bytes:
    if _is_hub_name(source, file):
        return hub_revision(source).encode()
    if not file.is_file():
        if file.is_dir():
            raise RowError(f"--train_data {source}", "a folder", f"its files of rows, such as {source}/*.jsonl.gz")
        beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise RowError(f"--train_data {source}", "no such file", "a file of rows" + nearest(file.name, beside))
    with file.open("rb") as stream:
        ending = "".join(file.suffixes[-2:]).lower()  # decides how the bytes are read
        return hashlib.file_digest(stream, "sha256").digest() + ending.encode()


def _records(file: Path) -> Iterator[tuple[object, str]]:
    """Raw rows of one file with their places. The ending says what the file is; a file that is not it is refused."""
    name = file.name.lower()
    with file.open("rb") as stream:
        magic = stream.read(4)
    kinds = {b"PAR1": "a Parquet file", b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip file"}
    found = next((kind for start, kind in kinds.items() if magic.startswith(start)), "plain data")
    wanted = {".parquet": "a Parquet file", ".jsonl.gz": "a gzip file", ".jsonl": "plain data"}
    expected = next((kind for ending, kind in wanted.items() if name.endswith(ending)), None)
    if expected is None:
        raise RowError(str(file), "an unknown ending", "a name that ends in .jsonl, .jsonl.gz or .parquet")
    if magic and found != expected:
        raise RowError(str(file), found, f"{expected}, as the ending says")
    yield from _parquet_records(file) if name.endswith(".parquet") else _json_records(file, name.endswith(".gz"))


def _json_records(file: Path, gzipped: bool) -> Iterator[tuple[object, str]]:
    number = 0
    try:
        with gzip.open(file) if gzipped else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                place = f"{file}, line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{line[error.start]:02x} at position {error.start}"
                    raise RowError(place, byte, "UTF-8 text") from None
                if not text.strip():
                    raise RowError(place, "an empty line", "a JSON object")
                try:
                    yield json.loads(text), place
                except (ValueError, RecursionError) as error:  # ValueError: also integers too long to read
                    raise RowError(place, f"broken JSON ({error})", "one JSON object a line") from None
    except (zlib.error, EOFError, OSError) as error:
        raise RowError(f"{file}, after line {number}", f"unreadable data ({error})", "a complete file") from None


def _parquet_records(file: Path) -> Iterator[tuple[object, str]]:
    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield row, f"{file}, row {number}"
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RowError(str(file), f"unreadable data ({error})", "a complete Parquet file") from None


def hub_revision(name: str, flag: str = "--train_data") -> str:
    """The commit that a hub dataset's name stands for now. Raises RowError, naming `flag`, when the hub is silent."""
    from huggingface_hub import HfApi

    try:
        return f"{name}@{HfApi().dataset_info(name, timeout=20).sha}"
    except Exception as error:  # the hub client raises many kinds; all mean the same here
        raise _unreachable(name, flag, error) from None


def hub_records(name: str, flag: str = "--train_data") -> Iterator[tuple[object, str]]:
    """Raw rows of a hub dataset's train split with their places, streamed. Raises RowError, naming `flag`."""
    try:
        for number, row in enumerate(datasets.load_dataset(name, split="train", streaming=True), 1):
            yield row, f"{name}, row {number}"
    except UserError:
        raise
    except Exception as error:
        raise _unreachable(name, flag, error) from None


def _unreachable(name: str, flag: str, error: Exception) -> RowError:
    why = f"no answer from the hub ({type(error).__name__})"
    return RowError(f"{flag} {name}", why, "a reachable hub, or a local copy of its files")


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
