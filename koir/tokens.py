"""From texts to chunks of token ids: prompts, truncation, and a length-sorted plan under a token budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

ROWS = 8  # a chunk's padded tokens are a multiple of it: matrix products of all sizes would be compiled for each
DEFAULT_PROMPTS = {"query": "query: ", "document": "passage: "}  # multilingual-e5's, and what most Korean encoders keep


@dataclass(frozen=True)
class Plan:
    """Which texts go through the encoder together.

    chunks: positions of texts, longest first, so that one chunk holds texts of like length.
    width: the longest text of each chunk, in tokens; len(chunk) * width is what the chunk costs, but for rounding.
    """

    chunks: list[list[int]]
    width: list[int]

    def inverse(self) -> torch.Tensor:
        """[U] where each text's row stands once the chunks' outputs are concatenated."""
        order = torch.tensor([text for chunk in self.chunks for text in chunk])  # [U]
        return torch.argsort(order)  # [U]


def plan_chunks(lengths: Sequence[int], chunk_tokens: int) -> Plan:
    """Cut texts into chunks of at most `chunk_tokens` padded tokens, sorted by length, longest first.

    Sorting makes padding all but vanish, and the longest chunk first makes a lack of memory show at once. A text
    longer than the budget gets a chunk of its own. Equal lengths keep their order, so a plan is deterministic.
    """
    order = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    chunks, width = [], []
    for text in order:
        if not chunks or (len(chunks[-1]) + 1) * width[-1] > chunk_tokens:
            chunks.append([])
            width.append(lengths[text])
        chunks[-1].append(text)
    return Plan(chunks, width)


def pad(sequences: Sequence[Sequence[int]], pad_token_id: int, width: int = 0) -> dict[str, torch.Tensor]:
    """Right-pad token ids to the longest, or to `width`: input_ids and attention_mask, each [n, T]."""
    width = max(width, *map(len, sequences))
    input_ids = torch.full((len(sequences), width), pad_token_id)  # [n, T]
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)  # [n, T]
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def tokenise(tokenizer, texts: Sequence[str], max_seq_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut at `max_seq_length` tokens."""
    return tokenizer(list(texts), truncation=True, max_length=max_seq_length)["input_ids"]


def chunked(
    sequences: Sequence[Sequence[int]], pad_token_id: int, chunk_tokens: int, longest: int
) -> tuple[list[dict], torch.Tensor]:
    """Plan and pad U token sequences: the chunks to run, and [U] where each text lands in their concatenation.

    A chunk's width is rounded up, at most to `longest`, until its padded tokens are a multiple of ROWS; they can so
    exceed chunk_tokens by a few.
    """
    plan = plan_chunks([len(ids) for ids in sequences], chunk_tokens)
    chunks = []
    for texts, width in zip(plan.chunks, plan.width, strict=True):
        step = ROWS // math.gcd(len(texts), ROWS)
        rounded = min(-(-width // step) * step, longest)
        chunks.append(pad([sequences[text] for text in texts], pad_token_id, rounded))
    return chunks, plan.inverse()
