"""Shards of rows: gzipped JSON Lines in which each column has one type."""

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from koir.manifest import written_aside


@dataclass
class Shape:
    """One type for each column of a folder, as `datasets` needs it: a list in every row where any row has one."""

    documents: bool
    negatives: bool
    scores: bool

    def __call__(self, row: dict) -> dict:
        """The row with all columns; a text that is missing is null."""
        shaped = {"query": row["query"], "document": _as(row["document"], self.documents)}
        shaped["hard_negative"] = _as(row.get("hard_negative"), self.negatives)
        if self.scores:
            shaped["document_score"] = _as(row.get("document_score"), self.documents)
            shaped["hard_negative_score"] = _as(row.get("hard_negative_score"), self.negatives)
        return shaped | {"source": row["source"], "id": row.get("id")}


def _as(value: object, listed: bool) -> object:
    if isinstance(value, list) and not listed:
        return value[0] if value else None
    return [value] if listed and value is not None and not isinstance(value, list) else value


def write_rows(file: Path, rows: Iterable[dict]) -> None:
    """JSON Lines, gzipped without a time stamp, so that equal rows are equal bytes; whole or not at all."""
    settings = {"filename": "", "mode": "wb", "compresslevel": 1, "mtime": 0}
    with written_aside(file) as aside, aside.open("wb") as raw, gzip.GzipFile(fileobj=raw, **settings) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_rows(file: Path) -> Iterator[dict]:
    """The rows of a file that `write_rows` wrote."""
    with gzip.open(file) as stream:
        for line in stream:
            yield json.loads(line)
