"""Attention and dropout of training on CPUs: what plain autograd gives with the same mask, and masks like chance."""

from types import SimpleNamespace

import pytest
import torch
from one_step import tiny_encoder
from torch import nn

from koir.kernels import attention, products, unpadded
from koir.kernels.dropout import BLOCK, blocks, by_bits, draw_seed, kept, share_kept
from koir.tokens import pad


def inputs(n=3, heads=2, length=7, width=4, dtype=torch.float64):
    torch.manual_seed(0)
    mask = torch.ones(n, 1, 1, length, dtype=torch.bool)
    mask[1:, ..., -2:] = False  # the first text is as long as the chunk
    return [torch.randn(n, heads, length, width, dtype=dtype).requires_grad_() for _ in range(3)], mask


def test_products_see_no_gaps_between_rows(monkeypatch):
    """Heads of a lone text are views with gaps, on which oneDNN falls back to its slow reference."""
    seen = []
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "_product", lambda rows, weight: seen.append((rows, weight)) or rows @ weight.t())
    parts = [torch.randn(1, 300, 2, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    attention.attend(*parts, None, 0.1).sum().backward()
    assert len(seen) == 2 * 7  # two heads, two products forward and five backward
    assert all(part.is_contiguous() or part.t().is_contiguous() for pair in seen for part in pair)


def plain(query, key, value, mask, dropout, drops):
    """Attention spelled out. drops: [n, H, T, T] of ones and zeros."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (torch.softmax(scores, -1) * drops / share_kept(dropout) @ value).transpose(1, 2)


def drawn(query, dropout, seed):
    """The mask that attention over these shapes uses: all rows of all blocks."""
    n, heads, length, _ = query.shape
    flat = query.detach().reshape(n * heads, length, -1)
    blocks = [torch.empty(len(flat[rows]), length, length) for rows in attention._blocks(flat)]
    masks = [
        attention._mask(block, share_kept(dropout), seed, rows)
        for block, rows in zip(blocks, attention._blocks(flat), strict=True)
    ]
    return torch.cat(masks).view(n, heads, length, length)


SHAPES = [
    ({}, 1e-9), ({"length": 1}, 1e-9), ({"n": 9, "length": 200}, 1e-9),
    ({"length": 259, "dtype": torch.float32}, 1e-4), ({"length": 259}, 1e-9),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "bound"), SHAPES)
@pytest.mark.parametrize("masked", [True, False])
def test_outputs_and_gradients_are_those_of_plain_autograd(shape, bound, masked, monkeypatch):
    monkeypatch.setattr(products, "mkl_is_slow", torch.backends.mkldnn.is_available)
    parts, mask = inputs(**shape)
    mask = mask if masked and shape.get("length") != 1 else None
    torch.manual_seed(5)
    seed = draw_seed()
    torch.manual_seed(5)
    found = attention.attend(*parts, mask, 0.3)
    wanted = plain(*parts, mask, 0.3, drawn(parts[0], 0.3, seed))
    slopes = torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)
    gradients = [torch.autograd.grad((made * slopes).sum(), parts) for made in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * max(1, theirs.abs().max().item()))


@pytest.mark.parametrize(("rows", "length"), [(18, 200), (2, 600)])
def test_no_text_or_head_shares_a_mask_with_another(rows, length):
    """Several blocks, of several texts each or of one text that takes several blocks of words: agreement is chance."""
    share = share_kept(0.5)
    flat = drawn(torch.empty(1, rows, length, 4), 0.5, 7).view(rows, -1)  # [rows, T * T]
    assert share == 0.5 and len(attention._blocks(torch.empty(rows, length, 4))) > 1
    signs = 2 * flat[:, : length**2 // 4096 * 4096].reshape(-1, 4096) - 1  # [pieces, 4096]; words come 2^18 at once
    assert (signs @ signs.t() / 4096).fill_diagonal_(0).abs().max() < 8 / 4096**0.5


def test_its_derivative_is_that_of_its_output():
    parts, mask = inputs(length=4)

    def again(*parts):
        torch.manual_seed(3)
        return attention.attend(*parts, mask, 0.2)

    assert torch.autograd.gradcheck(again, parts)


def test_without_dropout_it_is_torch_s_own():
    parts, mask = inputs()
    wanted = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(attention.attend(*parts, mask, 0.0), wanted)
    scaled = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(attention.attend(*parts, mask, 0.0, 0.3), scaled)


def test_bfloat16_is_near_and_stays_bfloat16():
    parts, mask = inputs(length=40)
    torch.manual_seed(1)
    wanted = attention.attend(*parts, mask, 0.1)
    torch.manual_seed(1)
    half = [part.detach().bfloat16().requires_grad_() for part in parts]
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.attend(*half, mask, 0.1)
    assert found.dtype == torch.bfloat16
    for made, of in ((found, half), (wanted, parts)):
        made.sum().backward()
        assert of[0].grad.dtype == of[0].dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.02 * wanted.abs().max().item())
    for ours, exact in zip(half, parts, strict=True):
        assert (ours.grad.double() - exact.grad).norm() < 0.03 * exact.grad.norm()


def test_models_use_it_for_short_texts_in_training_with_dropout_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(unpadded, "attend", lambda *parts: seen.append(parts) or attention.attend(*parts))
    chunk = pad([[0, 5, 6, 7, 2], [0, 8, 2]], 1)
    for dropout, training, calls in ((0.1, False, 0), (0.0, True, 0), (0.1, True, 2)):
        tiny_encoder(dropout).train(training).embed(chunk)
        assert len(seen) == calls
    assert seen[0][4:] == (0.1, 16**-0.5)  # two heads of 16
    monkeypatch.setattr(unpadded, "sdpa_attention_forward", lambda *_, **__: "torch's")
    parts, mask = inputs()
    for causal in (True, False):
        made = unpadded.attention(SimpleNamespace(is_causal=causal), *parts, mask, dropout=0.1)
        assert (made == "torch's") == causal
    assert seen[0][3].shape[-1] == 5 and not seen[0][3][1, ..., 3:].any()  # padding is never looked at


def test_dropout_keeps_its_share_scaled_and_its_gradient_follows():
    layer = nn.Sequential(nn.Dropout(0.1))
    by_bits(layer)
    values = torch.ones(1000, 999).mul_(torch.tensor([1.0, -2.0, 4.0]).repeat(333)).requires_grad_()
    torch.manual_seed(2)
    out = layer(values)
    share = share_kept(0.1)
    assert abs(share - 0.9) < 2**-16
    torch.testing.assert_close((out / values).unique(), torch.tensor([0, 1 / share]), rtol=0, atol=1e-6)
    assert abs((out != 0).double().mean() - share) < 5 * (share * (1 - share) / out.numel()) ** 0.5
    out.sum().backward()
    assert torch.equal(values.grad, (out / values).detach())
    torch.manual_seed(2)
    assert torch.equal(layer(values), out)
    assert not torch.equal(layer(values), out)
    assert torch.equal(layer.eval()(values), values)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.train()(values.bfloat16()).dtype == torch.bfloat16
    assert layer(values.to("meta")).shape == values.shape  # elsewhere it is torch's
    for probability, wanted in ((0.0, values), (1.0, torch.zeros(1000, 999))):
        layer[0].p = probability
        assert torch.equal(layer(values), wanted)


def test_masks_look_like_chance():
    """Within 5 standard deviations: neighbours at many distances, rows, columns, and masks of different seeds."""
    torch.manual_seed(0)
    size, share = 1 << 18, share_kept(0.1)
    deviation = (share * (1 - share)) ** 0.5
    masks = [(kept((size,), share, draw_seed()) - share) / deviation for _ in range(8)]
    for number, mask in enumerate(masks):
        for lag in (1, 2, 3, 4, 8, 63, 64, 65, 128, 256, 512, 1024, 1 << 14, 1 << 17):
            assert abs((mask[lag:] * mask[:-lag]).sum()) < 5 * (size - lag) ** 0.5
        for other in masks[:number]:
            assert abs((mask * other).sum()) < 5 * size**0.5
        for sums in (mask.view(512, 512).sum(0), mask.view(512, 512).sum(1)):
            assert abs(sums.var() / 512 - 1) < 5 * (2 / 512) ** 0.5
    seed, count = draw_seed(), 2 * BLOCK
    whole = kept((2 * count + 3,), share, seed)
    assert blocks(len(whole)) == 3
    assert torch.equal(kept((count + 3,), share, seed, start=1), whole[count:])  # blocks share no words
    first, second = ((part - share) / deviation for part in whole[: 2 * count].view(2, count))
    assert abs((first * second).sum()) < 5 * count**0.5


def test_no_two_elements_are_dropped_together_more_often_than_chance():
    """Over many seeds: each element keeps its share, and pairs of elements know nothing of each other."""
    torch.manual_seed(0)
    share, seeds, size = share_kept(0.1), 1000, 2000
    deviation = (share * (1 - share)) ** 0.5
    masks = torch.stack([kept((size,), share, draw_seed()) - share for _ in range(seeds)]) / deviation  # [seeds, size]
    assert abs(masks.mean(0).square().mean() * seeds - 1) < 5 * (2 / size) ** 0.5
    pairs = (masks.t() @ masks / seeds).square()
    apart = (pairs.sum() - pairs.diagonal().sum()) / (size * (size - 1)) * seeds  # 1 by chance
    assert abs(apart - 1) < 5 * 2 * (masks.square().var() / (size * seeds)) ** 0.5


def test_where_it_pays(monkeypatch):
    short, long = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, attention.LONG, 4)
    for slow in (True, False):
        monkeypatch.setattr(products, "mkl_is_slow", lambda slow=slow: slow)
        assert attention.pays(short, 0.1) and attention.pays(short.double(), 0.1)
        assert [attention.pays(part, 0.0) for part in (short, long, long.double())] == [False, slow, False]
        assert attention.pays(short.bfloat16(), 0.0) == slow
        assert not attention.pays(short.to("meta"), 0.1)
