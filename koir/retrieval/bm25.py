"""BM25 over Korean morphemes: Kiwi finds the words, bm25s counts them."""

import json
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np

from koir.retrieval.morphemes import morphemes
from koir.retrieval.ranking import as_run, best


class BM25:
    """An index over documents; exact scores (Lucene's variant, k1 = 1.5, b = 0.75).

    ids: document ids, sorted. index: bm25s' sparse columns, one a word. vocabulary: word -> column.
    """

    name = "bm25"

    def __init__(self, corpus: dict[str, str]):
        self.ids = sorted(corpus)
        self.index = bm25s.BM25()
        words = morphemes([corpus[document] for document in self.ids])
        self.vocabulary = {word: number for number, word in enumerate(sorted({w for text in words for w in text}))}
        ids = [[self.vocabulary[word] for word in text] for text in words]
        if self.vocabulary:  # bm25s cannot index a corpus without a single word
            self.index.index((ids, self.vocabulary), show_progress=False)

    def save(self, folder: Path) -> None:
        """Write the index into a folder that `load` maps back into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.ids, ensure_ascii=False)
        (folder / "ids.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        if self.vocabulary:
            self.index.save(folder, show_progress=False)
            words = json.dumps(self.vocabulary, ensure_ascii=False)  # bm25s adds an entry of its own to its copy
            (folder / "vocabulary.json").write_text(words, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "BM25":
        """The saved index, its scores memory-mapped."""
        found = cls.__new__(cls)
        found.ids = json.loads((folder / "ids.json").read_text(encoding="utf-8", errors="surrogatepass"))
        found.vocabulary, found.index = {}, bm25s.BM25()
        if (folder / "vocabulary.json").is_file():
            found.vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            found.index = bm25s.BM25.load(folder, mmap=True, load_vocab=False, show_progress=False)
        return found

    def search(self, queries: Sequence[str], depth: int) -> list[dict[str, float]]:
        """For each query its `depth` best documents: id -> score. Documents without a common word are left out."""
        found = []
        for words in morphemes(list(queries)):
            known = [self.vocabulary[word] for word in words if word in self.vocabulary]
            if not known:
                found.append({})
                continue
            scores = self.index.get_scores_from_ids(known)  # [N]
            floor = self._floor(known, scores, depth)
            matching = np.flatnonzero(scores >= floor if floor > 0 else scores)
            order = best(scores[matching], depth)
            found.append(as_run(self.ids, matching[order], scores[matching][order]))
        return found

    def _floor(self, known: list[int], scores: np.ndarray, depth: int) -> float:
        """A score that at least `depth` documents reach, so that ranking can begin there; 0 where none is known.

        It is the depth-th best score among the documents of the rarest word that so many have: those of a rare word
        score high, and to look at them alone costs little.
        """
        ends = self.index.scores["indptr"]
        word = min(
            (w for w in known if ends[w + 1] - ends[w] >= depth), key=lambda w: ends[w + 1] - ends[w], default=None
        )
        if word is None or depth < 1:
            return 0.0
        of_word = scores[self.index.scores["indices"][ends[word] : ends[word + 1]]]
        return np.partition(of_word, -depth)[-depth]
