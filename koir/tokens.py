"""From texts to chunks of token ids: prompts, truncation, and a length-sorted plan under a token budget."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

ROWS = 8  # a chunk's padded tokens are a multiple of it where they can be: what matrix products like
LEADING_BITS = 5  # of a width: libraries compile products for each shape, and keep what they compiled
BLOCK = 8192  # texts or pairs tokenised at once: bounds memory, large enough for the sort to pay
LOOKED_AT = 1000  # texts, to say how many are cut: all of a large corpus would take minutes
CPU_CHUNK = 1024  # padded tokens of a chunk: on a CPU chunks pay while they stay in its cache; more only costs memory
GPU_CHUNK = 32768  # padded tokens of a forward without gradients; with fewer a GPU waits for its launches
SPARE = 8  # tokens: at the end of a shortened text others may stand, and of a pair the longer is to stay the longer
DEFAULT_PROMPTS = {"query": "query: ", "document": "passage: "}  # multilingual-e5's, and what most Korean encoders keep


@dataclass(frozen=True)
class Plan:
    """Which texts go through the encoder together.

    chunks: positions of texts, longest first, so that one chunk holds texts of like length.
    width: tokens that each chunk is padded to, at least its longest text; len(chunk) * width is what the chunk costs.
    """

    chunks: list[list[int]]
    width: list[int]

    def inverse(self) -> torch.Tensor:
        """[U] where each text's row stands once the chunks' outputs are concatenated."""
        order = torch.tensor([text for chunk in self.chunks for text in chunk])  # [U]
        return torch.argsort(order)  # [U]


def plan_chunks(lengths: Sequence[int], chunk_tokens: int, longest: int | None = None) -> Plan:
    """Cut texts into chunks of at most `chunk_tokens` padded tokens, sorted by length, longest first.

    Sorting makes padding all but vanish, and the longest chunk first makes a lack of memory show at once. A text
    longer than the budget gets a chunk of its own. Equal lengths keep their order, so a plan is deterministic.
    Widths are rounded up by at most a sixteenth, and so many texts taken that the padded tokens are a multiple of ROWS:
    chunks of any data then have a few dozen shapes. longest: what no width may exceed; default: the longest text.
    """
    order = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    longest = longest or max(lengths, default=0)
    chunks, widths, start = [], [], 0
    while start < len(order):
        width = rounded(lengths[order[start]], longest)
        count, even = max(1, chunk_tokens // max(1, width)), ROWS // math.gcd(width, ROWS)
        count -= count % even if count > even else 0
        chunks.append(order[start : start + count])
        widths.append(width)
        start += count
    return Plan(chunks, widths)


def rounded(length: int, longest: int) -> int:
    """A length rounded up to LEADING_BITS, but not beyond `longest` tokens."""
    step = 1 << max(0, length.bit_length() - LEADING_BITS)
    return max(length, min(-(-length // step) * step, longest))


def pad(sequences: Sequence[Sequence[int]], pad_token_id: int, width: int = 0) -> dict[str, torch.Tensor]:
    """Right-pad token ids to the longest, or to `width`: input_ids and attention_mask, each [n, T]."""
    lengths = np.array([len(ids) for ids in sequences])  # [n]
    width = max(width, lengths.max())
    real = np.arange(width) < lengths[:, None]  # [n, T]
    ids = np.full(real.shape, pad_token_id)  # [n, T]
    ids[real] = _joined(sequences, lengths.sum())
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}


def _joined(sequences: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """All token ids, one after another: [count]. Lists and arrays each by what is fastest for them."""
    if isinstance(sequences[0], np.ndarray):
        return np.concatenate(sequences)
    return np.fromiter(itertools.chain.from_iterable(sequences), dtype=np.int64, count=count)


def tokenise(tokenizer, texts: Sequence[str], max_seq_length: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut at `max_seq_length` tokens."""
    return tokenizer(list(texts), truncation=True, max_length=max_seq_length)["input_ids"]


def tokenise_pairs(tokenizer, queries: Sequence[str], documents: Sequence[str], longest: int):
    """The tokenizer's own encoding of pairs, cut at `longest` tokens, of whichever text is the longer first.

    Of what it cuts off it makes a piece for every piece of the one text with every piece of the other: two texts of
    30,000 characters take half a minute. So where both are long they are shortened before, to more than can stay.
    """
    queries, documents = list(queries), list(documents)
    long = [n for n, pair in enumerate(zip(queries, documents, strict=True)) if min(map(len, pair)) > longest]
    if long and tokenizer.is_fast:
        texts = [text for n in long for text in (queries[n], documents[n])]
        coded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets, left = iter(coded["offset_mapping"]), tokenizer.truncation_side == "left"
        for n, first, second in zip(long, offsets, offsets, strict=True):
            more = SPARE * (1 + (len(first) > len(second))), SPARE * (1 + (len(second) > len(first)))
            queries[n] = shortened(queries[n], first, longest + more[0], left)
            documents[n] = shortened(documents[n], second, longest + more[1], left)
    return tokenizer(queries, documents, truncation=True, max_length=longest)


def shortened(text: str, offsets: Sequence[tuple[int, int]], tokens: int, left: bool) -> str:
    """A text's first (left: last) tokens. offsets: where each of its tokens stands."""
    if len(offsets) <= tokens:
        return text
    return text[offsets[-tokens][0] :] if left else text[: offsets[tokens - 1][1]]


def some_of(rows: Sequence) -> Sequence:
    """At most LOOKED_AT of rows, at even distances."""
    return rows[:: max(1, -(-len(rows) // LOOKED_AT))]


def _compact(chunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in 5 bytes a token instead of 16: a step holds all its chunks. `expanded` undoes it."""
    return {"input_ids": chunk["input_ids"].to(torch.int32), "attention_mask": chunk["attention_mask"].bool()}


def expanded(chunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A chunk as transformers take it: ids and mask int64."""
    return {name: tensor.long() for name, tensor in chunk.items()}


def chunked(
    sequences: Sequence[Sequence[int]], pad_token_id: int, chunk_tokens: int, longest: int
) -> tuple[list[dict], torch.Tensor]:
    """Plan and pad U token sequences, none beyond `longest`: chunks, and [U] where each text lands among them."""
    plan = plan_chunks([len(ids) for ids in sequences], chunk_tokens, longest)
    chunks = [
        _compact(pad([sequences[text] for text in texts], pad_token_id, width))
        for texts, width in zip(plan.chunks, plan.width, strict=True)
    ]
    return chunks, plan.inverse()
