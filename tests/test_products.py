"""oneDNN's products give what torch's own linear layers give, forward and backward."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from koir.kernels import products


@pytest.fixture
def pair(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 32, bias=False))
    ours = copy.deepcopy(plain)
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    products.by_onednn(ours)
    return plain, ours


def gradients(model, rows):
    rows = rows.clone().requires_grad_()
    (model(rows) * torch.arange(32)).sum().backward()
    return [rows.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48), (1, 48)])
def test_outputs_and_gradients_are_equal(pair, shape):
    plain, ours = pair
    rows = torch.randn(*shape)
    torch.testing.assert_close(ours(rows), plain(rows), rtol=1e-5, atol=1e-5)
    for found, wanted in zip(gradients(ours, rows), gradients(plain, rows), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_rows_that_do_not_lie_together(pair):
    plain, ours = pair
    rows = torch.randn(5, 3, 48).transpose(0, 1)
    torch.testing.assert_close(ours(rows), plain(rows), rtol=1e-5, atol=1e-5)


def test_the_same_input_gives_the_same_bits(pair):
    rows = torch.randn(64, 48)
    assert torch.equal(pair[1](rows), pair[1](rows))


def test_an_output_may_be_written_into(pair):
    for rows in (torch.randn(3, 5, 48), torch.randn(8, 48)):
        wanted, found = (layers[0](rows).mul_(2) for layers in pair)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        wanted, found = (
            torch.autograd.grad(y.sum(), x[0].weight)[0] for x, y in zip(pair, (wanted, found), strict=True)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_other_precisions_and_frozen_weights_go_their_own_way(pair):
    plain, ours = pair
    rows = torch.randn(4, 48)
    assert torch.equal(ours.double()(rows.double()), plain.double()(rows.double()))
    ours.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(rows).dtype == torch.bfloat16
    ours[0].requires_grad_(False)
    ours(rows).sum().backward()
    assert ours[0].weight.grad is None and ours[2].weight.grad is not None
    assert ours(torch.empty(0, 48)).shape == (0, 32)


def test_few_products_stay_compiled_unless_the_environment_says_otherwise(monkeypatch):
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(names[0], "512")
    products.keep_few_compiled()
    assert [os.environ[name] for name in names] == ["512", str(products.COMPILED)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_no_more_than_the_few_stay_compiled_in_fact():
    """More shapes than are kept, twice over: each product of the second round is compiled again, of a few none is."""
    code = (
        "import torch; from koir.kernels import products; products.keep_few_compiled(); weight = torch.ones(16, 16)\n"
        "for rows in 2 * [*range(1, {shapes} + 1)]: products._product(torch.ones(rows, 16), weight)"
    )
    root = Path(products.__file__).parents[1]
    environment = os.environ | {"ONEDNN_VERBOSE": "profile_create", "PYTHONPATH": str(root)}
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        environment.pop(name, None)
    for shapes, expected in ((products.COMPILED // 4, 1), (3 * products.COMPILED, 2)):
        words = [sys.executable, "-c", code.format(shapes=shapes)]
        said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
        compiled = [line for line in said.splitlines() if "create:cache_miss" in line and "inner_product" in line]
        assert len(compiled) == expected * shapes
