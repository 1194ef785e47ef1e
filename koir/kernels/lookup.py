"""Token embeddings on CPUs: after the first chunk of a step, the gradient touches a chunk's tokens, not the vocabulary.

torch's own writes zeros for the whole vocabulary and adds them, once for every chunk.
"""

import functools

import torch
from torch import nn


class _Lookup(torch.autograd.Function):
    """Rows of weight [V, D] for ids: [..., D]. Its gradient is sparse where there is a dense one to add it to."""

    @staticmethod
    def forward(ctx, weight, ids, padding):
        ctx.save_for_backward(weight, ids)
        ctx.rows, ctx.padding = len(weight), padding
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx, gradient):
        weight, ids = ctx.saved_tensors
        sparse = weight.grad is not None and weight.grad.layout == torch.strided
        settings = (ctx.rows, ctx.padding, False, sparse)
        return torch.ops.aten.embedding_backward(gradient.contiguous(), ids, *settings), None, None


def _forward(layer: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    weight = layer.weight
    if weight.device.type != "cpu" or not weight.is_leaf or layer.max_norm is not None or layer.scale_grad_by_freq:
        return nn.Embedding.forward(layer, ids)
    return _Lookup.apply(weight, ids, -1 if layer.padding_idx is None else layer.padding_idx)


def by_rows(model: nn.Module) -> None:
    """Let the embeddings of a model add up their gradients so on a CPU; elsewhere all is as before."""
    for layer in model.modules():
        if type(layer) is nn.Embedding and not layer.sparse:
            layer.forward = functools.partial(_forward, layer)
