"""Hard negatives for rows that have none, mined among the documents of all rows."""

import itertools
from collections.abc import Iterable, Iterator

from koir.mining import Answers, Query, Rules, Statistics, mine
from koir.retrieval.stages import first_stage
from koir.triplets import text_hash

BATCH = 1000  # queries searched at once


class Negatives:
    """The passages of all rows, and a first stage over them.

    rows: every row, read once. spec: `bm25`, `dense:PATH` or `hybrid:PATH`. depth: candidates taken for a query.
    Holds each distinct passage in memory, and which are right answers of which query.
    """

    def __init__(self, rows: Iterable[dict], spec: str, rules: Rules, depth: int):
        stage = first_stage(spec)  # before anything is read: it may be unknown
        self.texts: dict[str, str] = {}
        self.answers, self.rules, self.depth = Answers(), rules, depth
        for row in rows:
            documents = _listed(row["document"])
            self.texts.update((_id(text), text) for text in documents)
            self.answers.add(row["query"], map(_id, documents))
        self.index = stage(self.texts)

    def fill(self, rows: Iterable[dict], statistics: Statistics) -> Iterator[dict]:
        """The rows in order; one without a hard negative gets at most rules.num_negatives."""
        rows = iter(rows)
        while batch := list(itertools.islice(rows, BATCH)):
            asked = list(dict.fromkeys(row["query"] for row in batch if not row.get("hard_negative")))
            found = dict(zip(asked, self.index.search(asked, self.depth), strict=True)) if asked else {}
            for row in batch:
                if row.get("hard_negative"):
                    statistics.counts["rows with hard negatives of their source"] += 1
                    yield row
                    continue
                positives = [_id(text) for text in _listed(row["document"])]
                query = Query(row["query"], positives, self.answers.of(row["query"]))
                chosen = mine(query, found[row["query"]], self.texts, self.rules, statistics)
                yield row | {"hard_negative": [self.texts[document] for document in chosen] or None}


def _id(text: str) -> str:
    return f"{text_hash(text) & 0xFFFFFFFFFFFFFFFF:016x}"


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
