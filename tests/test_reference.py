"""Against the original gradient cache (github.com/luyug/GradCache): pip install ".[reference]"."""

import pytest
import torch
from one_step import tiny_encoder
from test_gradients import assert_equal
from toy import TEXTS

from koir.gradcache import GradientCache
from koir.losses import info_nce
from koir.tokens import pad, tokenise

grad_cache = pytest.importorskip("grad_cache", reason="the extra named reference is not installed")


def test_gradients_are_those_of_the_original():
    def sides(encoder):
        return [
            pad(tokenise(encoder.tokenizer, [prompt + text for text in texts], 24), encoder.tokenizer.pad_token_id)
            for prompt, texts in (("query: ", TEXTS[:6]), ("passage: ", TEXTS[6:]))
        ]

    def loss(queries, documents):
        return info_nce(queries, documents, torch.arange(6), 0.05)

    def of(encoder):
        return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}

    theirs = tiny_encoder(dropout=0.2).train()
    torch.manual_seed(2)
    call = torch.nn.Module()
    call.forward = lambda **chunk: theirs([chunk])
    original = grad_cache.GradCache([call, call], 2, loss)
    value = original(*sides(theirs))
    ours = tiny_encoder(dropout=0.2).train()
    torch.manual_seed(2)
    chunks = [
        {name: part[start : start + 2] for name, part in side.items()} for side in sides(ours) for start in (0, 2, 4)
    ]
    cache = GradientCache(lambda chunk: ours([chunk]), lambda scalar: scalar.backward(), keep_tokens=0)
    assert torch.allclose(cache(chunks, lambda vectors: loss(vectors[:6], vectors[6:])), value)
    assert_equal(of(ours), of(theirs))
