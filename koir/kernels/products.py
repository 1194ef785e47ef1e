"""Matrix products of training by oneDNN on AMD CPUs, where MKL, torch's own choice, falls back to old instructions."""

import functools
import os
from pathlib import Path

import torch
from torch import nn

from koir.tokens import ROWS

COMPILED = 64  # products that oneDNN keeps: more than one chunk's layers have, far fewer than an epoch's


def keep_few_compiled() -> None:
    """Let oneDNN, and torch's cache before it, keep COMPILED products instead of 1,024, unless the environment says so.

    To be called before the first product, in training: each that is kept holds 0.7 MiB, all of a chunk's layers share
    it, and compiling it for the next chunk of its shape again takes 0.4 ms (0.7% of a step of 128 rows).
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(COMPILED))


@functools.cache
def mkl_is_slow() -> bool:
    """Whether this is a CPU on which MKL does not use what the chip can do. By vendor: a timing would not repeat."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """rows [n, K] times weight [M, K], plus bias [M]: [n, M]."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _dense(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix without gaps between its rows or columns: with them oneDNN is a thousand times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def batched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [g, m, k] times right [g, k, n]: [g, m, n], either perhaps a transposed view. Knows no gradient."""
    alone = len(left) == 1 and left.dtype == torch.float32 and mkl_is_slow()
    if not alone:
        return torch.bmm(left, right)
    left, right = _dense(left[0]), _dense(right[0])
    if left.is_contiguous():
        return _product(left, right.t())[None]
    return _product(right.t(), left).t()[None]  # the same, and sooner where left is a transposed view


def _filled_up(rows: torch.Tensor) -> torch.Tensor:
    """rows [n, K] and zeros up to a multiple of ROWS: oneDNN compiles each shape it meets, and chunks have many."""
    count, missing = len(rows), -len(rows) % ROWS
    if not missing:
        return _dense(rows)
    filled = rows.new_empty(count + missing, rows.shape[1])
    filled[:count], filled[count:] = rows, 0
    return filled


def _transposed_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [n, M] transposed times right [n, K]: [M, K]. oneDNN gets a transposed copy of one: the narrower."""
    if left.shape[1] > right.shape[1]:
        return _product(right.t(), left.t()).t().contiguous()
    return _product(left.t(), right.t())


class _Linear(torch.autograd.Function):
    """A linear layer whose three products, one forward and two backward, are oneDNN's. rows: [n, K]."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        filled = _filled_up(rows)
        ctx.save_for_backward(filled, weight)
        return _product(filled, weight, bias)[: len(rows)].data  # no view, so that a model may write into it

    @staticmethod
    def backward(ctx, gradient):
        filled, weight = ctx.saved_tensors
        to_rows, to_weight, to_bias = ctx.needs_input_grad
        full = _filled_up(gradient)  # [n, M]
        return (
            _product(full, weight.t())[: len(gradient)] if to_rows else None,
            _transposed_product(full, filled) if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )


def _forward(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    plain = rows.device.type == "cpu" and rows.dtype == layer.weight.dtype == torch.float32
    if plain and rows.numel() and not torch.is_autocast_enabled("cpu"):
        flat = rows.reshape(-1, rows.shape[-1])  # [n, K]
        return _Linear.apply(flat, layer.weight, layer.bias).view(*rows.shape[:-1], -1)
    return nn.functional.linear(rows, layer.weight, layer.bias)


def by_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model use oneDNN where MKL is slow: float32 on a CPU; all else is as before."""
    if mkl_is_slow():
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.forward = functools.partial(_forward, layer)
