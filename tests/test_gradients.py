"""The cache changes nothing but memory: every parameter's gradient, v1.1 against v1, through the real Trainer."""

import pytest
import torch
from one_step import gradients, tiny_encoder
from toy import torchrun

from koir.gradcache import GradientCache
from koir.tokens import pad


def assert_equal(found, expected, double=False):
    """The design's "equal gradients", of every parameter that either side has."""
    assert found.keys() == expected.keys() and len(found) > 20
    everything = torch.cat([g.flatten() for g in expected.values()]).norm()
    bound = 1e-9 if double else 1e-5
    for name, gradient in expected.items():
        allowed = bound * max(gradient.norm(), 1e-3 * everything)
        difference = (found[name] - gradient).norm()
        assert difference <= allowed, f"{name}: {difference:.3e} > {allowed:.3e}"
    assert everything > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("accumulation", "chunk_tokens"), [(1, 24), (2, 24), (1, 100), (2, 4096)])
def test_cached_equals_plain(rows, tmp_path, dropout, accumulation, chunk_tokens):
    same = {"rows": rows, "dropout": dropout, "accumulation": accumulation, "chunk_tokens": chunk_tokens}
    plain = gradients("v1", folder=tmp_path / "plain", **same)
    cached = gradients("v1.1", folder=tmp_path / "cached", **same)
    assert_equal(cached, plain)


@pytest.mark.parametrize("keep", [0, 60, 10**9])
def test_what_is_kept_changes_nothing(rows, tmp_path, keep):
    same = {"rows": rows, "dropout": 0.2, "chunk_tokens": 40, "double": True}
    plain = gradients("v1", folder=tmp_path / "plain", **same)
    cached = gradients("v1.1", folder=tmp_path / "cached", keep=keep, **same)
    assert_equal(cached, plain, double=True)


def test_activation_checkpointing_changes_nothing(rows, tmp_path):
    same = {"rows": rows, "dropout": 0.2, "chunk_tokens": 40}
    plain = gradients("v1", folder=tmp_path / "plain", **same)
    for version in ("v1", "v1.1"):
        assert_equal(gradients(version, folder=tmp_path / version, checkpointing=True, **same), plain)


def test_clipping_and_loss_agree(rows, tmp_path):
    (plain, plain_loss), (cached, cached_loss) = (
        gradients(v, rows, tmp_path / v, dropout=0.1, accumulation=2, clip=0.01, loss=True) for v in ("v1", "v1.1")
    )
    assert_equal(cached, plain)
    assert abs(plain_loss - cached_loss) < 1e-5
    norm = torch.cat([g.flatten() for g in plain.values()]).norm()
    assert abs(norm - 0.01) < 1e-4


@pytest.mark.parametrize("setting", [{"temperature": 0.1}, {"max_hard_negatives": 0}, {"max_hard_negatives": 1}])
def test_each_setting_changes_the_gradients(rows, tmp_path, setting):
    before = gradients("v1.1", rows, tmp_path / "a", batch=16)
    after = gradients("v1.1", rows, tmp_path / "b", batch=16, **setting)
    assert any(not torch.allclose(before[name], after[name], rtol=1e-3) for name in before)


@pytest.mark.parametrize(("version", "accumulation"), [("v1", 1), ("v1.1", 1), ("v1.1", 2)])
def test_two_processes_equal_one_on_the_joined_batch(rows, tmp_path, version, accumulation):
    """Documents, queries and siblings repeat across the two; the chunk plans differ between them."""
    settings = {"version": version, "rows": str(rows), "chunk_tokens": 50, "accumulation": accumulation}
    batch = 8 // accumulation
    one = gradients(folder=tmp_path / "one", batch=batch, **settings)
    two = torchrun("one_step.py", 2, tmp_path / "two.pt", settings | {"batch": batch // 2})
    assert_equal(two, one)


def test_replay_draws_the_same_masks_and_leaves_the_generator_alone():
    encoder = tiny_encoder(dropout=0.3).train()
    chunks = [pad([[0, 5, 6, 2]], 1), pad([[0, 7, 2], [0, 9, 2]], 1)]
    runs = []
    for keep in (0, 10**9):
        torch.manual_seed(1)
        seen = []
        cache = GradientCache(lambda chunk: encoder([chunk]), lambda value: value.backward(), keep)
        cache(chunks, lambda embeddings, seen=seen: seen.append(embeddings.detach().clone()) or embeddings.sum())
        runs.append((seen[0], torch.rand(3)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
