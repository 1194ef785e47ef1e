"""What a training step asks of the machine, and what the machine can: shares of the measured matrix-product peak."""

import time

import torch
from torch import nn

from koir.kernels.products import by_onednn

FORWARD, BACKWARD = 2, 4  # floating-point operations for each weight and token


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square linear layer, the best of eight, as training runs it."""
    size = 8192 if device.type == "cuda" else 1024
    layer = nn.Linear(size, size, bias=False).to(device, dtype)
    rows = torch.randn(size, size, device=device, dtype=dtype)
    by_onednn(layer)
    seconds = []
    with torch.inference_mode():
        for _ in range(8):
            started = _now(device)
            layer(rows)
            seconds.append(_now(device) - started)
    return 2 * size**3 / min(seconds)


def step_operations(transformer: nn.Module, lengths: list[int], replayed: float) -> float:
    """Floating-point operations of one step over texts of so many tokens, padding not counted.

    replayed: the share of the forward passes that is done twice.
    """
    inside = sum(p.numel() for name, p in transformer.named_parameters() if p.dim() == 2 and "embeddings" not in name)
    config = transformer.config
    products = inside * sum(lengths)
    products += 2 * config.num_hidden_layers * config.hidden_size * sum(length**2 for length in lengths)  # attention's
    return products * (FORWARD * (1 + replayed) + BACKWARD)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
