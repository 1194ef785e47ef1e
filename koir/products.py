"""Matrix products of training by oneDNN on AMD CPUs, where MKL, torch's own choice, falls back to old instructions."""

import functools
from pathlib import Path

import torch
from torch import nn


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
    """rows [..., K] times weight [M, K], plus bias [M]: [..., M]."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """A linear layer whose three products, one forward and two backward, are oneDNN's."""

    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        rows, weight = ctx.saved_tensors
        to_rows, to_weight, to_bias = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])  # [n, M]
        return (
            _product(gradient, weight.t().contiguous()) if to_rows else None,
            _product(flat.t().contiguous(), rows.reshape(-1, rows.shape[-1]).t().contiguous()) if to_weight else None,
            flat.sum(0) if to_bias else None,
        )


def _forward(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    plain = rows.device.type == "cpu" and rows.dtype == layer.weight.dtype == torch.float32
    if plain and rows.numel() and not torch.is_autocast_enabled("cpu"):
        return _Linear.apply(rows.contiguous(), layer.weight, layer.bias)
    return nn.functional.linear(rows, layer.weight, layer.bias)


def by_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model use oneDNN where MKL is slow: float32 on a CPU; all else is as before."""
    if mkl_is_slow():
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.forward = functools.partial(_forward, layer)
