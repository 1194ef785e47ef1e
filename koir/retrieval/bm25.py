"""BM25 over Korean morphemes: Kiwi finds the words, bm25s counts them."""

import functools
import unicodedata
from collections.abc import Sequence

import bm25s
import numpy as np
from kiwipiepy import Kiwi

# Content words: nouns, numerals, roots, verbs and adjectives, foreign words, numbers, Chinese characters.
CONTENT_TAGS = ("NN", "NR", "XR", "VV", "VA", "SL", "SN", "SH", "W_")


@functools.cache
def _kiwi() -> Kiwi:
    return Kiwi()


def morphemes(texts: Sequence[str]) -> list[list[str]]:
    """The content morphemes of each text, lower-cased; particles, endings and punctuation are left out."""
    clean = [unicodedata.normalize("NFC", text).encode("utf-8", "ignore").decode() for text in texts]
    return [
        [token.form.lower() for token in tokens if token.tag.startswith(CONTENT_TAGS)]
        for tokens in _kiwi().tokenize(clean)
    ]


class BM25:
    """An index over documents; exact scores (Lucene's variant, k1 = 1.5, b = 0.75)."""

    name = "bm25"

    def __init__(self, corpus: dict[str, str]):
        self.ids = np.array(list(corpus))
        self.index = bm25s.BM25()
        words = morphemes(list(corpus.values()))
        self.vocabulary = {word: number for number, word in enumerate(sorted({w for text in words for w in text}))}
        ids = [[self.vocabulary[word] for word in text] for text in words]
        if self.vocabulary:  # bm25s cannot index a corpus without a single word
            self.index.index((ids, self.vocabulary), show_progress=False)

    def search(self, queries: Sequence[str], depth: int) -> list[dict[str, float]]:
        """For each query its `depth` best documents: id -> score. Documents without a common word are left out."""
        found = []
        for words in morphemes(list(queries)):
            known = [self.vocabulary[word] for word in words if word in self.vocabulary]
            scores = self.index.get_scores_from_ids(known) if known else np.zeros(len(self.ids))  # [N]
            best = np.lexsort((self.ids, scores))[::-1][:depth]  # ties by document id, descending, as trec_eval
            found.append({str(self.ids[i]): float(scores[i]) for i in best if scores[i] > 0})
        return found
