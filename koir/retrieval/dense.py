"""Exact dense search: every query against every document, by FAISS."""

from collections.abc import Sequence

import faiss
import numpy as np

from koir.encoder import Encoder


class Dense:
    """A flat inner-product index over a corpus embedded by one encoder."""

    def __init__(self, encoder: Encoder, corpus: dict[str, str], name: str = "dense", progress: bool = False):
        self.name, self.encoder, self.ids = name, encoder, np.array(list(corpus))
        self.progress = progress
        self.index = faiss.IndexFlatIP(encoder.dimensions)
        self.index.add(encoder.encode(list(corpus.values()), "document", progress="documents" if progress else None))

    def search(self, queries: Sequence[str], depth: int) -> list[dict[str, float]]:
        """For each query its `depth` nearest documents: id -> cosine."""
        vectors = self.encoder.encode(queries, "query", progress="queries" if self.progress else None)  # [Q, D]
        scores, found = self.index.search(vectors, min(depth, len(self.ids)))  # [Q, depth] each
        return [
            {str(self.ids[i]): float(s) for i, s in zip(row, values, strict=True)}
            for row, values in zip(found, scores, strict=True)
        ]
