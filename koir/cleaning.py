"""Which rows to keep: length bounds, boilerplate, exact and near duplicates, decontamination against tasks."""

import functools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from koir.duplicates import MinHash, NearDuplicates, digest, shingles, words
from koir.errors import FlagError
from koir.triplets import listed

GRAM = 13  # words in a row that give away a text of a task (Brown et al. 2020, appendix C)
# Site furniture: a text that is mostly this says nothing of its subject. The words alone are none, since people ask of
# copyright, of logging in and of JavaScript: a mark, or the sentence's end, tells them apart.
FURNITURE = re.compile(
    r"무단\s*(?:전재|복제|배포)[^\n.?]*금(?:지(?:합니다|됩니다|함)?|합니다)(?![가-힣])|저작권자\s*(?:[ⓒ©:]|\(c\))[^\n.?]*|[ⓒ©][^\n.)\]?]*"
    r"|copyrights?\s*(?:[ⓒ©:\d]|\(c\)|by\b)[^\n.]*|all rights reserved(?![가-힣])"
    r"|(?:본문|메뉴|주메뉴)\s*(?:으로)?\s*바로\s*가기|페이지를 찾을 수 없습니다|잘못된 접근입니다"
    r"|(?:로그인\s*(?:후|이)\s*(?:이용|필요)|자바스크립트를\s*(?:사용|활성|지원|허용|켜))[^\n.?]*(?:니다|세요|시오)(?![가-힣])",
    re.IGNORECASE,
)
NUMBER = re.compile(r"[\d.,%+-]+")  # as tables are full of


@dataclass(frozen=True)
class Facts:
    """What is known of one text. reason: why it cannot be in a row, or None, and then the rest is there."""

    reason: str | None
    digest: int = 0
    grams: np.ndarray | None = None  # word_grams, uint64 [G]
    shingles: np.ndarray | None = None  # uint32 [S]
    signature: np.ndarray | None = None  # MinHash, uint8


class Cleaner:
    """Says of one row after another whether to keep it; the order of the rows and `seed` decide, nothing else.

    Rows are {query, document, hard_negative, ...}, the texts as one, several or None. Reasons, in the order in which
    they are looked for; texts are compared `normalised` (NFC, case-folded, letters and digits alone):

    - `too short`, `too long`: query or document outside min_characters..max_characters
    - `symbols`: less than half of a text's visible characters are letters or digits
    - `repetition`: 30 words or more in a text, numbers left aside, and less than a fifth of them distinct
    - `boilerplate`: more than half of a document is site furniture (copyright, log-in and error lines)
    - `query equals document`
    - `query in TASK (equal)`, `(13-gram)`, and `document in TASK`, for each (name, queries, documents) of `exclude`
    - `exact duplicate`, `near duplicate` of an earlier row that was kept: similarity is the Jaccard coefficient of
      character 3-grams, estimated by MinHash, for queries and for documents (see NearDuplicates); a
      near_duplicate_threshold of 1 looks for none

    Of a row that is kept, hard negatives go that are a document of their row, too long, or in a task.

    Takes about 0.5 KB of memory a kept row. Raises FlagError for bounds that hold nothing.
    """

    def __init__(
        self,
        min_characters: int = 4,
        max_characters: int = 20_000,
        near_duplicate_threshold: float = 0.8,
        exclude: Iterable[tuple[str, Iterable[str], Iterable[str]]] = (),
        seed: int = 0,
    ):
        if not 0 < min_characters <= max_characters:
            raise FlagError(
                "--min_characters", f"{min_characters} (maximum {max_characters})", "0 < minimum <= maximum"
            )
        if not 0 < near_duplicate_threshold <= 1:
            raise FlagError("--near_duplicate_threshold", str(near_duplicate_threshold), "above 0, at most 1")
        self.bounds, self.counts = (min_characters, max_characters), Counter()
        self.exclude = [(name, Excluded(queries), Excluded(documents)) for name, queries, documents in exclude]
        self.minhash, self.seen = MinHash(seed), set()
        self.near = NearDuplicates(near_duplicate_threshold) if near_duplicate_threshold < 1 else None
        self.document = functools.lru_cache(256)(self.facts)  # the questions of one paragraph come in a row

    def keep(self, row: dict, left_out: Counter | None = None) -> str | None:
        """None where the row is kept, else why not; counted in `counts` under the reason, or `kept`.

        Its unfit hard negatives are taken out of it, and counted in `left_out` by reason.
        """
        query = self.facts(row["query"], asked=True)
        documents = [self.document(text) for text in listed(row["document"])]
        reason = (
            next((facts.reason for facts in (query, *documents) if facts.reason), None)
            or ("query equals document" if query.digest in {facts.digest for facts in documents} else None)
            or self._excluded(query, documents)
            or self._repeated(query, documents)
        )
        self.counts[reason or "kept"] += 1
        if reason is None and row.get("hard_negative"):
            self._take_out(row, {facts.digest for facts in documents}, Counter() if left_out is None else left_out)
        return reason

    def _take_out(self, row: dict, right: set[int], left_out: Counter) -> None:
        """Leave the fit ones of a row's hard negatives, and their scores. right: digests of its documents."""
        negatives, scores = listed(row["hard_negative"]), row.get("hard_negative_score")
        faults = [self._fault(text, right) for text in negatives]
        left_out.update(filter(None, faults))
        if any(faults):
            fit = [i for i, fault in enumerate(faults) if fault is None]
            row["hard_negative"] = [negatives[i] for i in fit] or None
            if scores is not None:
                row["hard_negative_score"] = [scores[i] for i in fit] if fit and isinstance(scores, list) else None

    def _fault(self, negative: str, right: set[int]) -> str | None:
        if len(negative) > self.bounds[1]:
            return "too long"
        of_text = words(negative)
        facts = Facts(None, digest("".join(of_text)), word_grams(of_text) if self.exclude else None)
        if facts.digest in right:
            return "a document of its row"
        return self._in_a_task(facts)

    def _in_a_task(self, facts: Facts) -> str | None:
        for name, _, of_documents in self.exclude:
            if how := of_documents.how(facts):
                return f"document in {name} ({how})"
        return None

    def facts(self, text: str, asked: bool = False) -> Facts:
        """What decides about one text of a row. asked: it is the query, which may well be about copyright."""
        if reason := self._unfit(text):
            return Facts(reason)
        if not asked and 2 * len(FURNITURE.sub("", text)) < len(text):
            return Facts("boilerplate")
        of_text = words(text)
        hashes = shingles("".join(of_text))
        signature = self.minhash(hashes) if self.near else None
        grams = word_grams(of_text) if self.exclude else None
        return Facts(None, digest("".join(of_text)), grams, hashes, signature)

    def _unfit(self, text: str) -> str | None:
        text = text.strip()
        if len(text) < self.bounds[0]:
            return "too short"
        if len(text) > self.bounds[1]:
            return "too long"
        parts = [part for part in text.split() if len(part) > 1 or part.isalnum()]  # not a table's | and - and ○
        if 2 * sum(map(len, words(text))) < sum(map(len, parts)) or not parts:
            return "symbols"
        parts = [part for part in parts if not NUMBER.fullmatch(part)]
        return "repetition" if len(parts) >= 30 and 5 * len(set(parts)) < len(parts) else None

    def _excluded(self, query: Facts, documents: list[Facts]) -> str | None:
        for name, of_queries, _ in self.exclude:
            if how := of_queries.how(query):
                return f"query in {name} ({how})"
        return next(filter(None, map(self._in_a_task, documents)), None)

    def _repeated(self, query: Facts, documents: list[Facts]) -> str | None:
        key = hash((query.digest, *(facts.digest for facts in documents)))  # of numbers, so the same everywhere
        if key in self.seen:
            return "exact duplicate"
        if self.near:
            together = np.concatenate([facts.shingles for facts in documents])
            signature = documents[0].signature if len(documents) == 1 else self.minhash(together)
            if self.near.add(query.signature, signature):
                return "near duplicate"
        self.seen.add(key)
        return None


class Excluded:
    """The queries, or the documents, of an evaluation task: equal texts and shared 13-grams are found again."""

    def __init__(self, texts: Iterable[str]):
        self.exact, grams = set(), [np.empty(0, np.uint64)]
        for text in texts:
            of_text = words(text)
            self.exact.add(digest("".join(of_text)))
            grams.append(word_grams(of_text))
        self.grams = np.unique(np.concatenate(grams))

    def how(self, facts: Facts) -> str | None:
        """How a text is in the task: `equal`, `13-gram`, or None."""
        if facts.digest in self.exact:
            return "equal"
        if not len(facts.grams) or not len(self.grams):
            return None
        places = np.minimum(np.searchsorted(self.grams, facts.grams), len(self.grams) - 1)
        return f"{GRAM}-gram" if (self.grams[places] == facts.grams).any() else None


def word_grams(of_text: Sequence[str]) -> np.ndarray:
    """Hashes of the runs of 13 words, uint64 [W - 12].

    A text of fewer words has none and can only be found as equal: most queries, for Korean writes particles and
    endings onto the word, and 13 words are some 50 syllables.
    """
    if len(of_text) < GRAM:
        return np.empty(0, np.uint64)
    hashes = np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in of_text), np.uint64)
    grams = np.zeros(len(of_text) - GRAM + 1, np.uint64)
    for place in range(GRAM):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + len(grams)]
    return grams
