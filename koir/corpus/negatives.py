"""Rows get their hard negatives: a first stage finds passages, perhaps a reranker judges them, `mining` chooses."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator

from koir.mining import Answers, Query, Rules, Statistics, mine
from koir.retrieval.stages import first_stage
from koir.triplets import listed, text_hash

BATCH = 2000  # rows searched at once


class Negatives:
    """The passages of all rows, and a first stage over them.

    rows: every row, read once. spec, index_uri: as `first_stage` takes them. depth: candidates taken for a query.
    given: what becomes of rows' own hard negatives: `keep` (nothing is mined for such rows), `add` or `replace`.
    passages: texts to find beside the rows' documents. reranker: an object with `score(pairs, progress)`; its logits
    judge the candidates, and are written as document_score and hard_negative_score.
    Holds each distinct passage in memory (`texts`: id -> text), and which are right answers of which query.
    """

    def __init__(
        self,
        rows: Iterable[dict],
        spec: str,
        rules: Rules,
        depth: int,
        given: str = "keep",
        passages: Iterable[str] = (),
        reranker=None,
        index_uri: str | None = None,
    ):
        self.stage = first_stage(spec, index_uri)  # before anything is read: it may be unknown
        self.texts: dict[str, str] = {}
        self.answers, self.rules, self.depth = Answers(), rules, depth
        self.given, self.reranker = given, reranker
        for row in rows:
            documents = listed(row["document"])
            self.texts.update((_id(text), text) for text in documents)
            self.answers.add(row["query"], map(_id, documents))
        self.empty = 0  # passages without a text, as tasks have them: a dense first stage would find them first
        for text in passages:
            if text.strip():
                self.texts.setdefault(_id(text), text)
            else:
                self.empty += 1

    @functools.cached_property
    def index(self):
        """The first stage over all passages, built when it is first asked."""
        return self.stage(self.texts)

    def fill(self, rows: Iterable[dict], statistics: Statistics) -> Iterator[dict]:
        """The rows in order, each with at most rules.num_negatives mined hard negatives."""
        rows = iter(rows)
        while batch := list(itertools.islice(rows, BATCH)):
            kept = [self._kept(row) for row in batch]
            asked = [row["query"] for row, own in zip(batch, kept, strict=True) if self._wanted(own)]
            asked = list(dict.fromkeys(asked))
            found = dict(zip(asked, self.index.search(asked, self.depth), strict=True)) if asked else {}
            logits = self._logits(batch, kept, found) if self.reranker else None
            equal = defaultdict(dict)  # of each query
            for row, own in zip(batch, kept, strict=True):
                if self._wanted(own):
                    mined = self._mined(row, own, found[row["query"]], logits, statistics, equal[row["query"]])
                    fit = own + mined == listed(row.get("hard_negative"))
                    row = row | {"hard_negative": own + mined or None}
                    statistics.counts["rows whose scores no longer fit"] += (
                        not fit and row.pop("hard_negative_score", None) is not None
                    )
                else:
                    statistics.counts["rows with hard negatives of their source"] += 1
                yield row if logits is None else row | _scored(row, logits)

    def _kept(self, row: dict) -> list[str]:
        return [] if self.given == "replace" else listed(row.get("hard_negative"))

    def _wanted(self, own: list[str]) -> bool:
        return self.given != "keep" or not own

    def _mined(
        self,
        row: dict,
        own: list[str],
        run: dict[str, float],
        logits: dict | None,
        statistics: Statistics,
        equal: dict[str, bool],
    ) -> list[str]:
        positives = [_id(text) for text in listed(row["document"])]
        if logits is not None:
            run = {document: logits[row["query"], self.texts[document]] for document in [*run, *positives]}
        query = Query(row["query"], positives, self.answers.of(row["query"]), own, equal)
        return [self.texts[document] for document in mine(query, run, self.texts, self.rules, statistics)]

    def _logits(self, batch: list[dict], kept: list[list[str]], found: dict[str, dict]) -> dict:
        """(query, text) -> raw logit, for candidates, documents and the hard negatives that stay."""
        pairs = [(query, self.texts[document]) for query, run in found.items() for document in run]
        for row, own in zip(batch, kept, strict=True):
            pairs += [(row["query"], text) for text in [*listed(row["document"]), *own]]
        pairs = list(dict.fromkeys(pairs))
        scores = self.reranker.score(pairs, progress="pairs") if pairs else []
        return {pair: float(score) for pair, score in zip(pairs, scores, strict=True)}


def _scored(row: dict, logits: dict) -> dict:
    """The score columns of a row, in the shapes of its texts."""
    columns = {}
    for name in ("document", "hard_negative"):
        texts = row.get(name)
        scores = [logits[row["query"], text] for text in listed(texts)]
        columns[f"{name}_score"] = scores if isinstance(texts, list) else next(iter(scores), None)
    return columns


def _id(text: str) -> str:
    return f"{text_hash(text) & 0xFFFFFFFFFFFFFFFF:016x}"
