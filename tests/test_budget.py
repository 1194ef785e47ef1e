"""Token budgets: measured once, whole numbers where the user gave them, and those of the first start on resume."""

import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from one_step import tiny_encoder

from koir import budget
from koir.arguments import CacheArguments, ChunkArguments
from koir.errors import FlagError
from koir.tokens import CPU_CHUNK


def groups(chunk_tokens="auto", cache_keep_tokens="auto"):
    training = SimpleNamespace(device=torch.device("cpu"), bf16=False, fp16=False, deepspeed=None)
    step = CacheArguments(cache_keep_tokens=cache_keep_tokens)
    return {"training": training, "chunks": ChunkArguments(chunk_tokens=chunk_tokens), "step": step}


def test_auto_becomes_numbers_and_given_numbers_stay():
    found = groups()
    budget.settle(found, tiny_encoder(), None)
    assert found["chunks"].chunk_tokens == CPU_CHUNK and found["step"].cache_keep_tokens > 10_000
    given = groups("100", "0")
    budget.settle(given, tiny_encoder(), None)
    assert (given["chunks"].chunk_tokens, given["step"].cache_keep_tokens) == (100, 0)


@pytest.mark.parametrize(
    ("file", "content", "total"),
    [
        ("memory.max", "1000000\n", 1e6), ("memory.max", "max\n", None), (None, None, None),
        ("memory/memory.limit_in_bytes", "2000000\n", 2e6),
    ],
)  # fmt: skip
def test_a_containers_memory_is_what_counts(file, content, total, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "CGROUP", tmp_path)
    if file:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert budget.memory_for_training(0, torch.device("cpu"), 2) == (total or machine) / 2


def test_a_resumed_run_keeps_its_plan(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"chunk_tokens": 77, "cache_keep_tokens": 88}))
    found = groups()
    budget.settle(found, tiny_encoder(), recipe)
    assert (found["chunks"].chunk_tokens, found["step"].cache_keep_tokens) == (77, 88)


def test_zero_3_keeps_no_graphs():
    for given in ("auto", "500"):
        found = groups(cache_keep_tokens=given)
        found["training"].deepspeed = "zero3.json"
        found["training"].hf_deepspeed_config = SimpleNamespace(is_zero3=lambda: True)
        if given == "auto":
            budget.settle(found, tiny_encoder(), None)
            assert found["step"].cache_keep_tokens == 0
        else:
            with pytest.raises(FlagError, match="--cache_keep_tokens"):
                budget.settle(found, tiny_encoder(), None)


def test_the_probe_counts_what_the_graph_holds_and_disturbs_nothing():
    encoder = tiny_encoder(dropout=0.1).eval()
    state = torch.get_rng_state()
    small = budget.bytes_per_token(encoder, torch.device("cpu"))
    assert torch.equal(state, torch.get_rng_state()) and not encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    floats = 2 * (12 * 32 + 2 * 64)  # two layers: at least inputs, q, k, v, norms and the inner width, in float32
    assert 4 * floats / 2 < small < 4 * floats * 40


@pytest.mark.parametrize(("free", "token_bytes", "expected"), [(64e9, 1e5, 65536), (1e9, 1e5, 4096), (1e6, 1e6, 512)])
def test_a_gpus_chunk_is_a_power_of_two_within_its_share(free, token_bytes, expected):
    assert budget.chunk_budget(free, token_bytes, torch.device("cuda")) == expected


def test_kept_graphs_take_half_of_a_cpus_free_memory_and_a_quarter_of_a_gpus():
    assert [budget.keep_budget(1e9, 1e5, torch.device(name)) for name in ("cpu", "cuda", "mps")] == [5000, 2500, 2500]


@pytest.mark.parametrize(("fixed", "expected"), [(0, 1000), (10**9, 1000)])
def test_on_a_gpu_what_does_not_grow_with_the_chunk_does_not_count(monkeypatch, fixed, expected):
    def probe(encoder, device, rows):
        return 10, fixed + 1000 * rows * encoder.max_seq_length

    monkeypatch.setattr(budget, "_probe", probe)
    encoder = tiny_encoder()
    assert budget.bytes_per_token(encoder, torch.device("cuda")) == expected
    encoder.max_seq_length = 8192  # one text is more than a probe's tokens
    assert budget.bytes_per_token(encoder, torch.device("cuda")) == 1000 + fixed / 8192
