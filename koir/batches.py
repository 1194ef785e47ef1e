"""Rows of one process's batch become chunks of distinct texts, and the columns that the loss works on."""

from collections.abc import Sequence

import pyarrow.compute as pc
import torch
from torch.nn.utils.rnn import pad_sequence

from koir.encoder import Encoder
from koir.errors import RowError
from koir.tokens import chunked, tokenise
from koir.triplets import Triplets, text_hash


class Collator:
    """Rows of one process's batch -> chunks of its distinct texts, and where query and document columns find them.

    chunks: padded inputs of the U distinct texts, longest first; inverse [U] undoes the sorting.
    query [b], document [n], target [b]: positions in U of queries and columns; target is each query's own column.
    query_hash [b], document_hash [n], known [b, P]: text hashes, `known` the right answers of each row, or of
    all rows of its query with the first of them (0 pads).
    With a guide, `guide` has its own chunks, inverse, query and document. With `distillation`, teacher_columns [b, M]
    has the columns of each row's own candidates, its document first (-1 pads), teacher_scores [b, M] their scores.
    """

    def __init__(
        self,
        encoder: Encoder,
        chunk_tokens: int,
        max_hard_negatives: int | None = None,
        guide: Encoder | None = None,
        distillation: bool = False,
        longest: int | None = None,
        answers: dict[str, list[int]] | None = None,
    ):
        """longest: tokens of a text here, where fewer than the encoder reads.

        answers: right answers of queries that other rows ask too, as `triplets.answers_of_repeated` finds them.
        """
        self.encoder, self.chunk_tokens, self.max_hard_negatives = encoder, chunk_tokens, max_hard_negatives
        self.guide, self.distillation, self.longest = guide, distillation, longest
        self.answers = answers or {}

    def __call__(self, rows: Sequence[dict]) -> dict:
        """b rows of `triplets.SCHEMA` to one batch."""
        negatives = [row["hard_negatives"][: self.max_hard_negatives] for row in rows]
        queries = [row["query"] for row in rows]
        documents = [row["document"] for row in rows] + sum(negatives, [])  # own document first, so target is 0..b-1
        batch = {
            "target": list(range(len(rows))),
            "query_hash": [text_hash(text) for text in queries],
            "document_hash": [text_hash(text) for text in documents],
            "known": padded(self._right_answers(rows)),
        }
        if self.distillation:
            batch |= _teacher(rows, [len(texts) for texts in negatives])
        batch = {name: torch.as_tensor(value) for name, value in batch.items()}
        if self.guide is not None:
            batch["guide"] = self.planned(self.guide, queries, documents)
        return batch | self.planned(self.encoder, queries, documents)

    def _right_answers(self, rows: Sequence[dict]) -> list[list[int]]:
        """Hashes of each row's; those of a query that other rows ask too are with its first row, for all of them."""
        found, asked = [], set()
        for row in rows:
            query = row["query"]
            found.append(row["right_answers"] if query in asked else self.answers.get(query, row["right_answers"]))
            asked.add(query)
        return found

    def planned(self, encoder: Encoder, queries: Sequence[str], documents: Sequence[str]) -> dict:
        """The chunks an encoder has to run for these texts, each distinct one once, and where each row will be."""
        position: dict[str, int] = {}
        plan = {
            kind: torch.tensor([position.setdefault(encoder.prompts[kind] + text, len(position)) for text in texts])
            for kind, texts in (("query", queries), ("document", documents))
        }
        longest = min(self.longest or encoder.max_seq_length, encoder.max_seq_length)
        sequences = tokenise(encoder.tokenizer, list(position), longest)
        chunks, inverse = chunked(sequences, encoder.tokenizer.pad_token_id, self.chunk_tokens, encoder.max_seq_length)
        return plan | {"chunks": chunks, "inverse": inverse, "tokens": sum(map(len, sequences))}


def _teacher(rows: Sequence[dict], counts: Sequence[int]) -> dict[str, torch.Tensor]:
    """Columns and scores of each row's own candidates; `counts` of its hard negatives stand after all documents."""
    columns, scores, first = [], [], len(rows)
    for number, (row, count) in enumerate(zip(rows, counts, strict=True)):
        columns.append([number, *range(first, first + count)])
        own = row["document_score"] or 0.0  # none where it stands alone
        scores.append([own, *(row["hard_negative_scores"] or [])[:count]])
        first += count
    return {"teacher_columns": padded(columns, -1), "teacher_scores": padded(scores, 0.0)}


def padded(lists: Sequence[Sequence], filler: float = 0) -> torch.Tensor:
    """The n lists, each filled up to the longest, of M items: [n, M]."""
    return pad_sequence([torch.tensor(items) for items in lists], batch_first=True, padding_value=filler)


def require_scores(triplets: Triplets, flag: str, max_hard_negatives: int | None = None, lone: bool = True) -> None:
    """Raise RowError unless every text that is learned from has a teacher's score.

    lone: so must the document of a row without hard negatives, which teaches no order, but a value.
    """
    table = triplets.pairs.data.table
    own, texts, scores = (table[name] for name in ("document_score", "hard_negatives", "hard_negative_scores"))
    some = pc.greater(pc.list_value_length(texts), 0)
    if max_hard_negatives == 0 or not pc.any(some).as_py():
        raise RowError(flag, "no hard negatives", "rows with scored hard negatives: one candidate teaches no order")
    lacking = pc.or_(pc.and_(pc.is_null(own), pc.or_(some, lone)), pc.and_(some, pc.is_null(scores)))
    count = pc.sum(lacking).as_py()
    if count:
        query = table["query"][pc.index(lacking, True).as_py()].as_py()
        found = f"{count:,} of {len(own):,} pairs without a teacher's scores, the first of query {query[:40]!r}"
        which = "every row" if lone else "every row with hard negatives"
        raise RowError(flag, found, f"document_score and hard_negative_score in {which}")
