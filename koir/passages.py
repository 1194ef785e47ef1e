"""Long documents in passages, of which the best stands for the document (MaxP of Dai and Callan, 2019)."""

from collections.abc import Sequence

import numpy as np

BLOCK = 1024  # texts tokenised at once
SHARED = 4  # a quarter of a passage stands in the one before it too


def passages(tokenizer, texts: Sequence[str], tokens: int) -> list[list[str]]:
    """Each text in parts of `tokens` tokens, a text that has no more as it is; tokens of one mark stay together.

    A part begins inside the one before it, so that what one cuts in two the other has whole. The last reaches the end.
    """
    found: dict[str, list[str]] = dict.fromkeys(texts)
    order = list(found)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        coded = tokenizer(block, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False)
        for text, offsets in zip(block, coded["offset_mapping"], strict=True):
            found[text] = _parts(text, offsets, tokens)
    return [found[text] for text in texts]


def _parts(text: str, offsets: list[tuple[int, int]], tokens: int) -> list[str]:
    last = len(offsets) - tokens
    if last <= 0:
        return [text]
    starts = [*range(0, last, max(tokens - tokens // SHARED, 1)), last]
    return [
        text[offsets[start][0] if start else 0 : offsets[start + tokens - 1][1] if start < last else None]
        for start in starts
    ]


def strongest(scores: np.ndarray, parts: Sequence[Sequence[str]]) -> np.ndarray:
    """Scores of all parts [m], in order, to the best of each text: [n]."""
    return np.maximum.reduceat(scores, np.cumsum([0, *map(len, parts)])[:-1]) if len(parts) else scores
