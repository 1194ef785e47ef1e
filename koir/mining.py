"""Which retrieved passages make good hard negatives: near the query, and most likely not right answers."""

import functools
import os.path
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from koir.duplicates import digest, normalised, shingles
from koir.errors import FlagError

# Letters and digits in a row: as many two passages share where they are cut out of one text.
STRETCH = 100


@dataclass(frozen=True)
class Rules:
    """Which candidates of a query may become its hard negatives, and which of these do.

    num_negatives: at most so many a row. skip_top: best candidates passed over (right answers not counted).
    max_ratio: a candidate scoring above this share of the positive's score is a likely false negative (TopK-PercPos,
    NV-Retriever, Moreira et al. 2024). margin: instead, a candidate must score at least so much below the positive,
    which also works for scores that can be negative (reranker logits). sampling: `top`, the best that may, or
    `random`, any that may. near_duplicate_threshold: share of character 3-grams that makes two texts near-equal.
    """

    num_negatives: int = 1
    skip_top: int = 0
    max_ratio: float = 0.95
    margin: float | None = None
    sampling: str = "top"
    near_duplicate_threshold: float = 0.8
    seed: int = 0

    def __post_init__(self):
        checks = {
            "num_negatives": (self.num_negatives >= 1, "at least 1"),
            "skip_top": (self.skip_top >= 0, "at least 0"),
            "max_ratio": (0 < self.max_ratio <= 10, "above 0, at most 10 (a share: 0.95 is usual)"),
            "margin": (self.margin is None or self.margin >= 0, "at least 0"),
            "sampling": (self.sampling in ("top", "random"), "top or random"),
            "near_duplicate_threshold": (0 < self.near_duplicate_threshold <= 1, "above 0, at most 1"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise FlagError(f"--{name}", str(getattr(self, name)), expected)

    def require_depth(self, depth: int) -> None:
        """Raise FlagError where --skip_top passes over all candidates of --depth."""
        if self.skip_top >= depth:
            raise FlagError("--skip_top", f"{self.skip_top}, all of --depth {depth}", "less than that")

    def ceiling(self, positive: float) -> float:
        """The score above which a candidate is a likely false negative; a share of a score below 0 means nothing."""
        if self.margin is not None:
            return positive - self.margin
        return self.max_ratio * positive if positive > 0 else positive


@dataclass
class Statistics:
    """What mining did. counts: see `mine`. positives, negatives: scores of the right answers and of what was chosen."""

    counts: Counter = field(default_factory=Counter)
    positives: list[float] = field(default_factory=list)
    negatives: list[float] = field(default_factory=list)

    def add(self, other: "Statistics") -> None:
        """Take in the statistics of other rows."""
        self.counts.update(other.counts)
        self.positives += other.positives
        self.negatives += other.negatives

    def content(self) -> dict:
        """As JSON: counts, the largest first, and the `histogram` of scores."""
        return {"counts": dict(self.counts.most_common()), "scores": self.histogram()}

    def histogram(self, bins: int = 20) -> dict:
        """Both kinds of scores over the same edges: {edges [bins + 1], positives [bins], negatives [bins]}."""
        scores = np.array(self.positives + self.negatives)
        edges = np.histogram_bin_edges(scores, bins) if len(scores) else np.linspace(0, 1, bins + 1)
        kinds = {"positives": self.positives, "negatives": self.negatives}
        return {"edges": edges.tolist()} | {name: np.histogram(s, edges)[0].tolist() for name, s in kinds.items()}


@dataclass(frozen=True)
class Query:
    """One row's side of mining.

    positives: corpus ids of its documents. answers: of all right answers of its query. given: texts of negatives that
    the row has already. equal: which candidates are near-equal to the query or an answer, as far as known; rows of one
    query may share it.
    """

    text: str
    positives: Sequence[str]
    answers: frozenset[str]
    given: Sequence[str] = ()
    equal: dict[str, bool] = field(default_factory=dict)


class Answers:
    """The right answers of each query, over all rows that ask it (queries are compared `normalised`)."""

    def __init__(self):
        self.of_query = defaultdict(set)

    def add(self, query: str, documents: Iterable[str]) -> None:
        """Note corpus ids as right answers of a query."""
        self.of_query[digest(normalised(query))].update(documents)

    def of(self, query: str) -> frozenset[str]:
        """Every right answer of a query: corpus ids."""
        return frozenset(self.of_query.get(digest(normalised(query)), ()))


def mine(
    query: Query, candidates: dict[str, float], corpus: dict[str, str], rules: Rules, statistics: Statistics
) -> list[str]:
    """Corpus ids of a row's hard negatives, best first, out of a first stage's candidates (id -> score).

    The positive's score is the lowest of the row's documents among the candidates; where none of them is there, every
    candidate outscores it, and nothing is mined. Counted in `statistics`: rows; rows with `all`, `fewer` or `no`
    negatives, and `positive not retrieved`; and of these rows' candidates: `right answer`, `skipped`,
    `likely false negative`, `near-equal`, `chosen`, `not needed`.
    """
    counts = statistics.counts
    counts["rows"] += 1
    scores = [candidates[document] for document in query.positives if document in candidates]
    chosen = _chosen(query, candidates, corpus, rules, rules.ceiling(min(scores)), counts) if scores else []
    counts["positive not retrieved"] += not scores
    counts[f"{('no', 'fewer', 'all')[(len(chosen) > 0) + (len(chosen) == rules.num_negatives)]} negatives"] += 1
    statistics.positives += scores
    statistics.negatives += [candidates[document] for document in chosen]
    return chosen


def _chosen(query: Query, candidates: dict, corpus: dict, rules: Rules, ceiling: float, counts: Counter) -> list[str]:
    ranked = sorted(candidates, key=lambda document: (candidates[document], document), reverse=True)
    others = [document for document in ranked if document not in query.answers]
    below = [document for document in others[rules.skip_top :] if candidates[document] <= ceiling]
    counts["candidates"] += len(ranked)
    counts["right answer"] += len(ranked) - len(others)
    counts["skipped"] += min(rules.skip_top, len(others))
    counts["likely false negative"] += max(0, len(others) - rules.skip_top) - len(below)
    order = below
    if rules.sampling == "random":  # by the query's text, so that neither shards nor the order of rows matter
        order = sorted(below)
        random.Random(f"{rules.seed} {query.text}").shuffle(order)
    answers, others = [corpus[document] for document in sorted(query.answers)], list(query.given)
    threshold = rules.near_duplicate_threshold
    chosen, equal = [], 0
    for document in order:
        if len(chosen) == rules.num_negatives:
            break
        text = corpus[document]
        if document not in query.equal:
            query.equal[document] = near_equal(text, [query.text], threshold) or near_equal(
                text, answers, threshold, part=True
            )
        if query.equal[document] or near_equal(text, others, threshold, part=True):
            equal += 1
            continue
        chosen.append(document)
        others.append(text)
    counts["near-equal"] += equal
    counts["chosen"] += len(chosen)
    counts["not needed"] += len(below) - len(chosen) - equal
    return sorted(chosen, key=ranked.index)


def near_equal(text: str, others: Iterable[str], threshold: float, part: bool = False) -> bool:
    """Whether a text shares at least `threshold` of the character 3-grams it has together with one of `others`.

    part: of the shorter text's own instead, so that a passage equals every longer one that holds it. Then two cuttings
    of one text that overlap are equal too: a third of the one stands in the other, word for word.
    """
    own = _shingles(text)
    for other in others:
        its = _shingles(other)
        shared = len(np.intersect1d(own, its, assume_unique=True))
        whole = min(len(own), len(its)) if part else len(own) + len(its) - shared
        if shared >= threshold * whole or part and _overlap(_normalised(text), _normalised(other)):
            return True
    return False


def _overlap(*texts: str) -> bool:
    """Whether one of the three thirds of either text stands in the other; not of texts so short that any might.

    What both begin or end with, a heading or a notice, is left aside.
    """
    for _ in "ab":  # the beginning, then the end
        alike = len(os.path.commonprefix(texts))
        texts = tuple(text[alike:][::-1] for text in texts)
    for text, other in (texts, texts[::-1]):
        third = len(text) // 3
        if third >= STRETCH and any(text[start : start + third] in other for start in (0, third, 2 * third)):
            return True
    return False


@functools.lru_cache(8192)
def _normalised(text: str) -> str:
    return normalised(text)


@functools.lru_cache(8192)
def _shingles(text: str) -> np.ndarray:
    return np.unique(shingles(_normalised(text)))
