"""What a reranker's score is shown as. Ranking is always by the raw float32 logits, in which ties are rare.

sigmoid (default) maps each pair by itself to 0 .. 1, so a score means the same in every list; near 0 and 1 many logits
fall together, so never rank by it. exp_normalize is a softmax over the candidates: it adds up to 1 in a list, changes
with the other candidates, and must not be compared between queries or held against a threshold.
"""

import numpy as np


def raw(logits: np.ndarray) -> np.ndarray:
    """The logits [n] as they are."""
    return np.asarray(logits, dtype=np.float64)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit)) of each, [n], without overflow."""
    logits = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, small) / (1 + small)


def exp_normalize(logits: np.ndarray) -> np.ndarray:
    """Softmax over the candidates [n] of one query."""
    logits = np.asarray(logits, dtype=np.float64)
    shares = np.exp(logits - logits.max()) if len(logits) else logits
    return shares / shares.sum() if len(logits) else shares


SCORE_MAPS = {"sigmoid": sigmoid, "raw": raw, "exp_normalize": exp_normalize}
