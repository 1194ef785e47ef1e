"""Embeddings whose gradient touches few rows: the same outputs and gradients as torch's, step after step."""

import copy

import pytest
import torch
from torch import nn

from koir.kernels.lookup import by_rows


@pytest.mark.parametrize("padding", [None, 1])
def test_gradients_of_several_chunks_add_up_as_torch_s(padding):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(50, 8, padding_idx=padding))
    ours = copy.deepcopy(plain)
    by_rows(ours)
    optimizers = [torch.optim.Adam(model.parameters()) for model in (plain, ours)]
    for _ in range(2):
        for chunk in (torch.tensor([[3, 4, 1], [4, 4, 49]]), torch.tensor([[5, 3], [1, 1]]), torch.tensor([[7]])):
            slopes = torch.randn(*chunk.shape, 8)
            for model in (plain, ours):
                (model(chunk) * slopes).sum().backward()
            torch.testing.assert_close(ours(chunk), plain(chunk))
        assert ours[0].weight.grad.layout == torch.strided
        torch.testing.assert_close(ours[0].weight.grad, plain[0].weight.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours[0].weight, plain[0].weight)


def test_frozen_and_doubled_precision_embeddings():
    layer = nn.Sequential(nn.Embedding(9, 4).double())
    by_rows(layer)
    ids = torch.tensor([2, 3, 3])
    for _ in range(2):
        layer(ids).sum().backward()
    assert layer[0].weight.grad.dtype == torch.float64 and layer[0].weight.grad[3].tolist() == [4.0] * 4
    layer.requires_grad_(False)
    assert not layer(ids).requires_grad
