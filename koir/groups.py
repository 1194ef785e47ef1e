"""Rows become groups, one right document and negatives for each query, and groups become chunks of pairs."""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from datasets import Dataset as Rows
from torch.utils.data import Dataset

from koir.batches import padded
from koir.gather import from_first
from koir.mining import Answers, Query, Rules, Statistics, mine
from koir.reranker import Reranker
from koir.sampling import RandomOrder
from koir.triplets import answers_of_repeated, text_hash

BLOCK = 1024  # rows searched for at once
KEPT = 16  # negatives of a row that are kept, or as many as a group takes; each step draws among them


class Groups(Dataset):
    """Groups of at most `size` documents: of key (row, epoch, early), the query's document and negatives drawn for it.

    Negatives are drawn by (seed, row, epoch), so a resumed run sees the same. mined: row -> texts to draw from in place
    of the row's own hard negatives. early: all negatives are random documents of other rows. With `fill`, groups that
    lack negatives are filled up with random documents. Right answers of a query, over all rows that ask it, are never
    its negatives.
    """

    def __init__(self, rows: Rows, size: int, seed: int, mined: list[list[str]] | None = None, fill: bool = True):
        self.rows, self.size, self.seed, self.mined, self.fill = rows, size, seed, mined, fill
        self.answers = answers_of_repeated(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int, bool]) -> dict:
        number, epoch, early = key
        row, draw = self.rows[number], random.Random(f"{self.seed} {number} {epoch}")
        right = set(self.answers.get(row["query"], row["right_answers"]))
        pool = [] if early else list(range(len(row["hard_negatives"])))
        texts, scores = row["hard_negatives"], row["hard_negative_scores"] or []
        if self.mined is not None:
            texts, scores = self.mined[number], []
            pool = [] if early else list(range(len(texts)))
        of_texts = {text_hash(texts[place]): place for place in reversed(pool)}  # of equal texts the first
        pool = sorted(place for text, place in of_texts.items() if text not in right)
        chosen = draw.sample(pool, min(self.size - 1, len(pool)))
        documents = [row["document"], *(texts[place] for place in chosen)]
        if self.fill:
            documents += self._random(draw, right, documents, self.size - len(documents))
        teacher = [row["document_score"], *(scores[place] for place in chosen)] if scores else [row["document_score"]]
        return {
            "query": row["query"],
            "documents": documents,
            "teacher": teacher,
            "filled": len(documents) - 1 - len(chosen),
        }

    def _random(self, draw: random.Random, right: set[int], taken: Sequence[str], wanted: int) -> list[str]:
        """Distinct documents of other rows; fewer where the rows have no more to give after many draws."""
        hashes, found = right | {text_hash(text) for text in taken}, []
        for _ in range(20 * wanted):
            if len(found) == wanted:
                break
            text = self.rows[draw.randrange(len(self.rows))]["document"]
            if text_hash(text) not in hashes:
                hashes.add(text_hash(text))
                found.append(text)
        return found


class Curriculum(RandomOrder):
    """Keys of `Groups` in random order; `early` until a share of all the training's rows has been drawn.

    total: rows of the whole training, asked for once it has begun.
    """

    def __init__(self, rows: int, seed: int, epoch: Callable[[], int], until: float, total: Callable[[], int]):
        super().__init__(rows, seed, epoch)
        self.until, self.total = until, total

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        epoch, switch = self.epoch(), self.until * self.total()
        for place, row in enumerate(super().__iter__()):
            yield row, epoch, epoch * self.rows + place < switch


class PairCollator:
    """Groups of one process's batch -> chunks of (query, document) pairs, and where each group finds its scores.

    chunks: padded inputs of the n pairs, longest first; pair [n]: which pair each row of their concatenation is.
    column [b, M]: where the concatenation has each group's scores, its right document first; there [b, M].
    target [n]: 1 for right documents, else 0, or the teacher's score; weight [n]: 1 / pairs in its group; both in the
    chunks' order. teacher [b, M]. filled: how many negatives were drawn at random for want of others.
    """

    def __init__(self, reranker: Reranker, chunk_tokens: int, taught: bool, longest: int | None = None):
        """longest: tokens of a pair here, where fewer than the reranker reads."""
        self.reranker, self.chunk_tokens, self.taught, self.longest = reranker, chunk_tokens, taught, longest

    def __call__(self, groups: Sequence[dict]) -> dict:
        """b groups to one batch."""
        pairs = [(group["query"], document) for group in groups for document in group["documents"]]
        chunks, inverse, tokens = self.reranker.chunks(pairs, int(self.chunk_tokens), self.longest)
        sizes = [len(group["documents"]) for group in groups]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        place = inverse.tolist()
        column = [place[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        teacher = [group["teacher"] if self.taught else [0.0] * len(group["documents"]) for group in groups]
        flat = sum(teacher, []) if self.taught else [float(n == 0) for size in sizes for n in range(size)]
        order = torch.argsort(inverse)  # [n]
        return {
            "chunks": chunks,
            "column": padded(column),
            "there": padded([[True] * size for size in sizes], False),
            "teacher": padded(teacher),
            "target": torch.tensor(flat)[order],
            "weight": torch.tensor([1 / size for size in sizes for _ in range(size)])[order],
            "tokens": tokens,
            "negatives": len(pairs) - len(groups),
            "filled": sum(group["filled"] for group in groups),
        }


def mine_groups(
    rows: Rows, stage: Callable, depth: int, max_ratio: float, size: int = KEPT
) -> tuple[list[list[str]], Statistics]:
    """For each row, up to KEPT negatives among a first stage's `depth` best candidates, over all the rows' documents.

    stage: from a corpus to its index, as `stages.first_stage` gives it. size: documents of a group, where that takes
    more. Of several processes the first one searches.
    """
    corpus: dict[str, str] = {}
    answers = Answers()
    for row in rows:
        for text in (row["document"], *row["hard_negatives"]):
            corpus[str(text_hash(text))] = text
        answers.add(row["query"], map(str, row["right_answers"]))
    index, rules = stage(corpus), Rules(num_negatives=max(KEPT, size - 1), max_ratio=max_ratio)

    def mined() -> tuple[list[list[str]], Statistics]:
        ids, statistics = [], Statistics()
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            distinct = list(dict.fromkeys(part["query"]))
            found = dict(zip(distinct, index.search(distinct, depth), strict=True))
            for query, document in zip(part["query"], part["document"], strict=True):
                asked = Query(query, [str(text_hash(document))], answers.of(query))
                ids.append(mine(asked, found[query], corpus, rules, statistics))
        return ids, statistics

    ids, statistics = from_first(mined)
    return [[corpus[i] for i in of_row] for of_row in ids], statistics
