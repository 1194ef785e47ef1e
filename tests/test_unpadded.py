"""Flattened chunks give what padded ones give; the kernel itself runs on GPUs only, so a loop stands for it here."""

from types import SimpleNamespace

import pytest
import torch
from one_step import tiny_encoder
from transformers import AutoConfig, AutoModel

from koir.encoder import Encoder
from koir.kernels import unpadded
from koir.tokens import pad

LENGTHS = (9, 5, 5, 2)


def loop_attention(query, key, value, bounds, _, longest, longest_key, scale=None):
    """Attention text by text: what the variable-length kernel computes."""
    assert longest == longest_key == max(LENGTHS) and bounds.dtype == torch.int32  # as the kernel asks
    parts = []
    for start, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        parts.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def chunk():
    torch.manual_seed(0)
    return pad([torch.randint(5, 900, (length,)).tolist() for length in LENGTHS], pad_token_id=1)


@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta", "camembert", "bert"])
def test_every_kind_flattened_counts_positions_as_it_does_padded(chunk, kind, monkeypatch):
    sizes = {"vocab_size": 900, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, pad_token_id=1, intermediate_size=32, max_position_embeddings=40, **sizes)
    encoder = Encoder(AutoModel.from_config(config).double(), tiny_encoder().tokenizer, "mean", 30, {}).eval()
    padded = encoder.embed(chunk)
    monkeypatch.setattr(unpadded, "why_padded", lambda *_: None)
    monkeypatch.setattr(unpadded, "varlen_attn", loop_attention)
    torch.testing.assert_close(encoder.embed(chunk), padded, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_embeddings_and_gradients_are_those_of_padded_chunks(chunk, pooling, monkeypatch):
    found = []
    for flattened in (False, True):
        torch.manual_seed(1)
        encoder = tiny_encoder(0.0, torch.float64)
        encoder.pooling = pooling
        if flattened:
            monkeypatch.setattr(unpadded, "why_padded", lambda *_: None)
            monkeypatch.setattr(unpadded, "varlen_attn", loop_attention)
        embeddings = encoder.train().embed(chunk)
        (embeddings * torch.arange(embeddings.numel()).view_as(embeddings)).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        found.append((embeddings.detach(), gradients))
    (padded, wanted), (flat, got) = found
    torch.testing.assert_close(flat, padded, rtol=1e-9, atol=1e-12)
    assert wanted.keys() == got.keys()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12 * largest.item(), msg=name)


def test_padded_attention_still_has_its_mask(chunk):
    encoder = tiny_encoder(0.0, torch.float64).eval()
    assert encoder.transformer.config._attn_implementation == unpadded.NAME
    alone = {name: tensor[2:3, : LENGTHS[2]] for name, tensor in chunk.items()}
    torch.testing.assert_close(encoder.embed(chunk)[2:3], encoder.embed(alone), rtol=1e-9, atol=1e-12)


def test_a_saved_folder_does_not_name_our_attention(tmp_path):
    tiny_encoder().save(tmp_path / "model")
    assert unpadded.NAME not in (tmp_path / "model" / "config.json").read_text(encoding="utf-8")


def test_only_kinds_known_here_and_torch_s_own_attention_are_replaced():
    for kind, before, replaced in (("bert", "sdpa", True), ("bert", "eager", False), ("modernbert", "sdpa", False)):
        asked, config = [], SimpleNamespace(model_type=kind, _attn_implementation=before)
        unpadded.prepare(SimpleNamespace(config=config, set_attn_implementation=asked.append))
        assert asked == [unpadded.NAME] * replaced


def test_why_chunks_stay_padded_is_said(monkeypatch):
    config = tiny_encoder().transformer.config
    assert unpadded.why_padded(config, torch.device("cpu"), torch.float32) == "no GPU"
    gpu = torch.device("cuda")
    monkeypatch.setattr(unpadded, "varlen_attn", loop_attention)
    bf16, fp16 = torch.bfloat16, torch.float16
    for capability, dtype, runs in (
        ((8, 0), bf16, True), ((9, 0), fp16, True), ((7, 5), fp16, False), ((8, 0), torch.float32, False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert ("Ampere" in (unpadded.why_padded(config, gpu, dtype) or "")) is not runs
    assert unpadded.why_padded(tiny_encoder(dropout=0.1).transformer.config, gpu, bf16).startswith("attention dropout")
    monkeypatch.setattr(unpadded, "varlen_attn", None)
    assert "no variable-length attention" in unpadded.why_padded(config, gpu, bf16)
    config.model_type, config._attn_implementation = "modernbert", "sdpa"
    assert "modernbert" in unpadded.why_padded(config, torch.device("cpu"), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the kernel itself is not tested here")
def test_the_kernel_on_a_gpu(chunk):
    encoder = tiny_encoder(0.0).cuda()
    chunk = {name: tensor.cuda() for name, tensor in chunk.items()}
    padded = encoder.eval().embed(chunk)
    with torch.autocast("cuda", torch.bfloat16):
        assert encoder.why_padded(torch.device("cuda")) is None
        flat = encoder.embed(chunk)
    torch.testing.assert_close(flat, padded, rtol=0, atol=2e-2)
