"""Token budgets: measured once, whole numbers where the user gave them, and those of the first start on resume."""

import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from one_step import tiny_encoder

from koir import budget
from koir.arguments import CacheArguments, ChunkArguments
from koir.errors import FlagError, RunError
from koir.tokens import CPU_CHUNK


def groups(chunk_tokens="auto", cache_keep_tokens="auto"):
    training = SimpleNamespace(device=torch.device("cpu"), bf16=False, fp16=False, deepspeed=None,
                               activation_checkpointing=False)  # fmt: skip
    step = CacheArguments(cache_keep_tokens=cache_keep_tokens)
    return {"training": training, "chunks": ChunkArguments(chunk_tokens=chunk_tokens), "step": step}


class Layer(torch.nn.Module):
    """An encoder whose graph holds one number and 1,000 products of every token; what it met is remembered."""

    max_seq_length = 4

    def __init__(self):
        super().__init__()
        self.scale, self.frozen = torch.nn.Parameter(torch.ones(1000)), torch.nn.Parameter(torch.ones(5), False)
        self.met = set()

    def forward(self, chunks):
        self.met |= {(self.training, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))}
        assert chunks[0]["input_ids"].min() > 3 and chunks[0]["attention_mask"].all()
        tokens = chunks[0]["input_ids"].flatten().float()[:, None]  # [n * T, 1]
        return (tokens * self.scale).tanh() * self.scale  # holds tokens, the tanh (twice the same) and the weight


def test_a_probe_counts_each_tensor_once_and_no_weights():
    layer = Layer().eval()
    assert budget.bytes_per_token(layer, torch.device("cpu")) == 4 + 4 * 1000
    assert [training for training, *_ in layer.met] == [True] and not layer.training


@pytest.mark.parametrize("half", ["bf16", "fp16", None])
def test_the_probe_runs_in_the_precision_of_training(half):
    found, layer = groups(), Layer()
    if half:
        setattr(found["training"], half, True)
    budget.settle(found, layer, None)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(half)
    assert [met[1:] if half else met[1] for met in layer.met] == [(True, dtype) if half else False]


def test_what_is_measured_is_this_process_s_share_after_model_and_guide(monkeypatch):
    asked = []
    monkeypatch.setattr(budget, "memory_for_training", lambda *given: asked.append(given) or 1e9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setattr(budget, "two_threads", lambda args: args.device.type == "cpu")
    for guide, parameters in ((None, 1005), (Layer(), 1005 + 251)):  # 16 bytes a weight, of a guide 4
        budget.settle(groups() | {"guide": guide}, Layer(), None)
        assert asked.pop() == (parameters, torch.device("cpu"), 3, True)


def test_processes_agree_on_the_smallest_of_their_numbers(monkeypatch):
    monkeypatch.setattr(budget, "gather_sizes", lambda number: [[number + 9], [number], [number + 1]])
    monkeypatch.setattr(budget, "memory_for_training", lambda *_: 1e9)
    monkeypatch.setattr(budget, "bytes_per_token", lambda *_: 1e5)
    found = groups()
    budget.settle(found, tiny_encoder(), None)
    assert (found["chunks"].chunk_tokens, found["step"].cache_keep_tokens) == (CPU_CHUNK, 5000)


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
    assert budget.memory_for_training(1000, torch.device("cpu"), 2) == (total or machine) / 2 - 16_000
    assert budget.memory_for_training(1000, torch.device("cpu"), 2, twice=True) == (total or machine) / 2 - 20_000
    assert budget.memory_for_training(10**15, torch.device("cpu"), 2) == 0


def test_a_gpu_is_one_process_s_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10**6))
    assert budget.memory_for_training(1000, torch.device("cuda"), 4) == 10**6 - 16_000


def test_a_resumed_run_keeps_its_plan(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"chunk_tokens": 77, "cache_keep_tokens": 88}))
    found = groups()
    budget.settle(found, tiny_encoder(), recipe)
    assert (found["chunks"].chunk_tokens, found["step"].cache_keep_tokens) == (77, 88)
    given = groups("100", "0")
    budget.settle(given, tiny_encoder(), recipe)
    assert (given["chunks"].chunk_tokens, given["step"].cache_keep_tokens) == (100, 0)
    recipe.write_text("chunk_tokens: many\n")
    with pytest.raises(FlagError, match=r"recipe\.yaml: chunk_tokens: found many; expected the number"):
        budget.settle(groups(), tiny_encoder(), recipe)
    recipe.unlink()
    budget.settle(found := groups(), tiny_encoder(), recipe)
    assert found["chunks"].chunk_tokens == CPU_CHUNK


def test_memory_that_does_not_suffice_for_the_probe_is_said_with_budgets_that_need_none(monkeypatch):
    def probe(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(budget, "_probe", probe)
    with pytest.raises(RunError, match=r"memory: found none left .* expected --chunk_tokens \d+ --cache_keep_tokens 0"):
        budget.settle(groups(), tiny_encoder(), None)
    budget.settle(groups("64", "0"), tiny_encoder(), None)


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


def test_kept_graphs_take_half_of_a_cpus_free_memory_and_on_a_gpu_what_the_chunk_leaves_of_three_quarters():
    names = ("cpu", "cuda", "mps")
    assert [budget.keep_budget(1e9, 1e5, torch.device(name), 4096) for name in names] == [5000, 3404, 3404]
    assert budget.keep_budget(1e9, 1e5, torch.device("cuda"), 8192) == 0


@pytest.mark.parametrize("free", [1.3e10, 6.1e10, 1.3e11])
def test_on_a_gpu_a_whole_chunk_is_kept_where_the_power_of_two_leaves_room(free):
    chunk = budget.chunk_budget(free, 1.1e6, torch.device("cuda"))
    kept = budget.keep_budget(free, 1.1e6, torch.device("cuda"), chunk)
    assert chunk <= kept and (chunk + kept) * 1.1e6 <= 0.75 * free


@pytest.mark.parametrize(("fixed", "expected"), [(0, 1000), (10**9, 1000)])
def test_on_a_gpu_what_does_not_grow_with_the_chunk_does_not_count(monkeypatch, fixed, expected):
    def probe(encoder, device, rows):
        return 10, fixed + 1000 * rows * encoder.max_seq_length

    monkeypatch.setattr(budget, "_probe", probe)
    encoder = tiny_encoder()
    assert budget.bytes_per_token(encoder, torch.device("cuda")) == expected
    encoder.max_seq_length = 8192  # one text is more than a probe's tokens
    assert budget.bytes_per_token(encoder, torch.device("cuda")) == 1000 + fixed / 8192
    monkeypatch.setattr(budget, "_probe", lambda encoder, device, rows: (2 * 8192, fixed))
    assert budget.bytes_per_token(encoder, torch.device("cuda")) == max(2, fixed / 8192)
