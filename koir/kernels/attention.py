"""Attention of training on CPUs: block by block in the cache, scores and dropout masks made again for backward.

torch's own has no fast path with dropout there, and keeps three matrices of scores for backward.
"""

import torch

from koir.kernels import products
from koir.kernels.dropout import blocks, draw_seed, kept, share_kept

BLOCK = 1 << 18  # scores: 1 MiB in float32, which a core's second cache holds
LONG = 256  # tokens; from here on one text and head is a block, whose products oneDNN takes where it is the faster


class _Attention(torch.autograd.Function):
    """query, key, value: [g, T, d] of g texts and heads, query scaled. bias: [g, 1, T] or None. Returns [g, T, d]."""

    @staticmethod
    def forward(ctx, query, key, value, bias, share, seed):
        ctx.share, ctx.seed = share, seed
        mixed = torch.empty_like(query)
        for rows in _blocks(query):
            weights = _weights(query[rows], key[rows], bias, rows)  # [b, T, T]
            if share < 1:
                weights.mul_(_mask(weights, share, seed, rows))
            mixed[rows] = products.batched(weights.to(value.dtype), value[rows])
        mixed.mul_(1 / share)
        ctx.save_for_backward(query, key, value, bias, mixed)
        return mixed

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, bias, mixed = ctx.saved_tensors
        share, dtype = ctx.share, query.dtype
        wide = torch.promote_types(dtype, torch.float32)
        inner = (gradient.to(wide) * mixed).sum(-1, keepdim=True)  # [g, T, 1]: what softmax's derivative takes off
        gradient = gradient.contiguous() * (1 / share)
        of_query, of_key, of_value = (torch.empty_like(part) for part in (query, key, value))
        for rows in _blocks(query):
            weights = _weights(query[rows], key[rows], bias, rows)  # [b, T, T]
            slopes = products.batched(gradient[rows], value[rows].mT).to(wide)  # [b, T, T]
            mask = _mask(weights, share, ctx.seed, rows) if share < 1 else None
            if mask is not None:
                slopes.mul_(mask)
            slopes = slopes.sub_(inner[rows]).mul_(weights).to(dtype)
            if mask is not None:
                weights.mul_(mask)
            of_value[rows] = products.batched(weights.to(dtype).mT, gradient[rows])
            of_query[rows] = products.batched(slopes, key[rows])
            of_key[rows] = products.batched(slopes.mT, query[rows])
        return of_query, of_key, of_value, None, None, None


def _blocks(query: torch.Tensor) -> list[slice]:
    g, length, _ = query.shape
    step = 1 if length >= LONG else max(1, BLOCK // length**2)
    return [slice(start, start + step) for start in range(0, g, step)]


def _mask(weights: torch.Tensor, share: float, seed: int, rows: slice) -> torch.Tensor:
    """A block's dropout mask [b, T, T], which no other block shares words with."""
    return kept(weights.shape, share, seed, rows.start * blocks(weights[0].numel()))


def _weights(query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, rows: slice) -> torch.Tensor:
    """Softmax over the scores of a block's texts and heads: [b, T, T], in float32 at least."""
    scores = products.batched(query, key.mT)  # [b, T, T]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        scores.add_(bias[rows])
    return torch.softmax(scores, -1)


def pays(query: torch.Tensor, dropout: float) -> bool:
    """Whether `attend` is faster than torch's attention for query [n, H, T, d]: always with dropout, on a CPU."""
    if query.device.type != "cpu" or dropout:
        return query.device.type == "cpu"
    half = query.dtype == torch.bfloat16
    return products.mkl_is_slow() and (half or query.dtype == torch.float32 and query.shape[2] >= LONG)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of every token to all unmasked ones, with dropout on its weights.

    query, key, value: [n, H, T, d]. mask: bool, [n, 1, 1 or T, T], True where a token is seen, the same for every query
    (no causal ones). Returns [n, T, H, d].
    """
    n, heads, length, width = query.shape
    bias = None
    if mask is not None:
        wide = torch.promote_types(query.dtype, torch.float32)
        bias = torch.zeros(n, 1, length, dtype=wide).masked_fill_(~mask[:, 0, :1], torch.finfo(wide).min)  # [n, 1, T]
        bias = bias.repeat_interleave(heads, 0)  # [g, 1, T]
    query = query * (width**-0.5 if scaling is None else scaling)
    flat = [part.contiguous().view(n * heads, length, width) for part in (query, key, value)]  # [g, T, d] each
    share, seed = (share_kept(dropout), draw_seed()) if dropout else (1.0, 0)
    mixed = _Attention.apply(*flat, bias, share, seed)  # [g, T, d]
    return mixed.view(n, heads, length, width).transpose(1, 2).contiguous()
