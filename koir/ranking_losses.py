"""Losses of a cross-encoder as pure functions: scores of each query's group of documents -> one differentiable sum.

A group is one right document, first, and its negatives: [b, M], `there` False where a shorter group ends.
"""

import torch
from torch.nn import functional


def cross_entropy(scores: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Sum over groups of -log softmax(scores)[0]: the right document against its own negatives.

    Localized contrastive estimation (Gao et al. 2021, arXiv:2101.08751). scores: [b, M]. there: [b, M] bool.
    """
    nowhere = torch.finfo(scores.dtype).min / 4  # finite: infinity less infinity is no number
    return -scores.masked_fill(~there, nowhere).log_softmax(1)[:, 0].sum()


def binary_cross_entropy(scores: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum over pairs of the cross-entropy of sigmoid(scores) with targets in 0 .. 1, all [n]."""
    return functional.binary_cross_entropy_with_logits(scores, targets, weights, reduction="sum")


def squared_error(scores: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum over pairs of (scores - targets)^2, all [n]: a teacher's raw logits learned one by one."""
    return (weights * (scores - targets).square()).sum()


POINTWISE = {"binary_cross_entropy": binary_cross_entropy, "mse": squared_error}
