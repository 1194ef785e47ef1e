"""BM25 over Korean morphemes and pairs of characters: Kiwi finds the words, bm25s counts both.

Where Kiwi cuts a name or a compound in the query unlike in the document, the pairs still meet. On the dev splits of
three tasks they are worth 0.02 to 0.05 nDCG@10; on the demo's, whose queries share no words with passages, they lose
0.02. A document says at its beginning what it is about, so the first words count twice, which is worth 0.001 to 0.008
on four (benchmarks/bm25_tags.py).
"""

import functools
import json
import os
import re
import warnings
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from koir.bars import progress_bar
from koir.retrieval.morphemes import morphemes, plain_forms
from koir.retrieval.ranking import as_run, best

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # bm25s tries JAX, where it is, which takes most of a GPU when it starts
import bm25s

K1, B = 1.2, 0.75
PAIR_WEIGHT = 0.5  # of a pair's score beside a morpheme's
LEAD_WORDS = 12  # at a document's beginning, which count twice
PAIR = "\t"  # pairs begin with it, and no morpheme does


def character_pairs(text: str) -> list[str]:
    """Each two neighbouring characters of each word, lower-cased; a word's beginning counts as a character, a space."""
    words = re.findall(r"\w+", plain_forms(text).lower())
    return [PAIR + marked[at : at + 2] for marked in (f" {word}" for word in words) for at in range(len(marked) - 1)]


def lead(text: str) -> str:
    """The first words of a document, as spaces part them."""
    return " ".join(text.split(maxsplit=LEAD_WORDS)[:LEAD_WORDS])


def terms(texts: Sequence[str]) -> list[list[str]]:
    """What BM25 looks for of each query: its morphemes, then its pairs of characters."""
    return [[*words, *character_pairs(text)] for text, words in zip(texts, morphemes(texts), strict=True)]


class BM25:
    """An index over documents; exact scores (Lucene's variant): of morphemes, plus by their weight of pairs.

    Both are counted over the document with its lead once more behind it.

    ids: document ids, sorted. index: bm25s' sparse columns, one a term. vocabulary: term -> column. progress: show how
    far the documents' morphemes are found, which is most of the work.
    """

    name = "bm25"

    def __init__(self, corpus: dict[str, str], progress: bool = False):
        self.ids = sorted(corpus)
        texts = [corpus[document] for document in self.ids]
        leads = [lead(text) for text in texts]
        self.vocabulary, self.index = _counted(morphemes(texts, "morphemes" if progress else None), morphemes(leads))
        shown = progress_bar("pairs of characters" if progress else None, texts, unit="text", leave=False)
        pairs, of_pairs = _counted(map(character_pairs, shown), map(character_pairs, leads))
        self.vocabulary |= {pair: len(self.vocabulary) + column for pair, column in pairs.items()}
        self.index.scores = _side_by_side(self.index.scores, of_pairs.scores)

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
        """The saved index, its scores memory-mapped. Raises ValueError, and what readers raise, for a damaged one."""
        found = cls.__new__(cls)
        found.ids = json.loads((folder / "ids.json").read_text(encoding="utf-8", errors="surrogatepass"))
        found.vocabulary, found.index = {}, bm25s.BM25()
        if (folder / "vocabulary.json").is_file():
            found.vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            found.index = bm25s.BM25.load(folder, mmap=True, load_vocab=False, show_progress=False)
            found._require_whole()
        return found

    def _require_whole(self) -> None:
        """Raise ValueError, or what bm25s raises, where the parts of what was loaded do not fit each other."""
        columns = len(self.index.scores["indptr"]) - 1
        if sorted(self.vocabulary.values()) != list(range(columns)):
            raise ValueError(f"a vocabulary of {len(self.vocabulary)} terms, {columns} columns")
        documents = self.index.scores["num_docs"]
        if documents != len(self.ids):
            raise ValueError(f"scores of {documents} documents, {len(self.ids)} ids")
        data, places = self.index.scores["data"], self.index.scores["indices"]
        if data.dtype != np.float32 or len(data) != len(places):
            raise ValueError(f"{len(data)} scores ({data.dtype}) of {len(places)} places")
        self._scores([0])

    def search(self, queries: Sequence[str], depth: int) -> list[dict[str, float]]:
        """For each query its `depth` best documents: id -> score. Documents without a common term are left out.

        In as many threads as torch computes in.
        """

        def one(of_query: list[str]) -> dict[str, float]:
            known = [self.vocabulary[term] for term in of_query if term in self.vocabulary]
            if not known:
                return {}
            scores = self._scores(known)  # [N]
            floor = self._floor(known, scores, depth)
            matching = np.flatnonzero(scores >= floor if floor > 0 else scores)
            order = best(scores[matching], depth)
            return as_run(self.ids, matching[order], scores[matching][order])

        with ThreadPoolExecutor(torch.get_num_threads(), "bm25") as pool:
            return list(pool.map(one, terms(list(queries))))

    def _scores(self, known: list[int]) -> np.ndarray:
        """Each document's sum [N] over the terms, as bm25s has it; torch lets go of Python's lock meanwhile."""
        (documents, of_terms), ends = self._columns, self.index.scores["indptr"]
        scores = torch.zeros(len(self.ids))
        for term in known:
            start, end = ends[term], ends[term + 1]
            scores.index_add_(0, documents[start:end], of_terms[start:end])
        return scores.numpy()

    @functools.cached_property
    def _columns(self) -> list[torch.Tensor]:
        """bm25s' columns behind each other: documents, and their scores."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # an index on disk
            return [torch.from_numpy(self.index.scores[name]) for name in ("indices", "data")]

    def _floor(self, known: list[int], scores: np.ndarray, depth: int) -> float:
        """A score that at least `depth` documents reach, so that ranking can begin there; 0 where none is known.

        It is the depth-th best score among the documents of the rarest term that so many have: those of a rare term
        score high, and to look at them alone costs little.
        """
        ends = self.index.scores["indptr"]
        term = min(
            (t for t in known if ends[t + 1] - ends[t] >= depth), key=lambda t: ends[t + 1] - ends[t], default=None
        )
        if term is None or depth < 1:
            return 0.0
        of_term = scores[self.index.scores["indices"][ends[term] : ends[term + 1]]]
        return np.partition(of_term, -depth)[-depth]


def _counted(texts: Iterable[list[str]], leads: Iterable[list[str]]) -> tuple[dict[str, int], bm25s.BM25]:
    """The vocabulary of the terms of texts, and an index of them with those of their leads."""
    vocabulary: dict[str, int] = {}
    ids = [
        array("i", [vocabulary.setdefault(term, len(vocabulary)) for term in of_text + of_lead])
        for of_text, of_lead in zip(texts, leads, strict=True)
    ]
    index = bm25s.BM25(k1=K1, b=B)
    if vocabulary:
        index.index((ids, dict(vocabulary)), show_progress=False)  # bm25s adds a word of its own to its copy
    else:  # it cannot index a corpus without a single word
        nothing, ends = np.empty(0, np.int32), np.zeros(1, np.int32)
        index.scores = {"data": nothing.astype(np.float32), "indices": nothing, "indptr": ends, "num_docs": len(ids)}
        index.vocab_dict, index.nonoccurrence_array = {}, None
    return vocabulary, index


def _side_by_side(words: dict, pairs: dict) -> dict:
    """bm25s' columns of words and, weighted, of pairs, as one index."""
    pairs["data"] *= PAIR_WEIGHT
    return words | {
        "data": np.concatenate([words["data"], pairs["data"]]).astype(np.float32, copy=False),
        "indices": np.concatenate([words["indices"], pairs["indices"]]),
        "indptr": np.concatenate([words["indptr"], words["indptr"][-1] + pairs["indptr"][1:]]),
    }
