"""The cache changes nothing but memory: every parameter's gradient, v1.1 against v1, through the real Trainer."""

import functools

import pytest
import torch
from commands import saved_by
from one_step import gradients, tiny_encoder

from koir import gather
from koir.gradcache import GradientCache, RandomStates
from koir.kernels import dropout, unpadded
from koir.kernels.compiled import compile_layers
from koir.losses import info_nce
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


def test_compiled_layers_change_nothing(rows, tmp_path, monkeypatch):
    """A GPU played on a CPU: torch's own kernels, traced and run as they are."""
    monkeypatch.setattr(unpadded, "pays", lambda *_: False)
    monkeypatch.setattr(dropout, "_forward", torch.nn.Dropout.forward)
    compile_as_is = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile_as_is)
    same = {"rows": rows, "dropout": 0.2, "chunk_tokens": 40}
    plain = gradients("v1", folder=tmp_path / "plain", **same)
    torch.compiler.reset()
    assert_equal(gradients("v1.1", folder=tmp_path / "compiled", keep=60, compiled=True, **same), plain)


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


@pytest.fixture(scope="module")
def two_processes(teacher_rows, tmp_path_factory):
    """What each of SPREAD gives on two processes, all from one launch."""
    settings = [setting | {"rows": str(teacher_rows)} for setting in SPREAD.values()]
    found = saved_by("one_step.py", 2, tmp_path_factory.mktemp("two") / "out.pt", settings)
    return dict(zip(SPREAD, found, strict=True))


TERMS = {"guide_model_name_or_path": "self", "symmetric_weight": 0.5, "distillation": "kl",
         "matryoshka_dimensions": [32, 8]}  # fmt: skip
SPREAD = {
    "plain": {"version": "v1", "chunk_tokens": 50, "batch": 4},
    "cached": {"version": "v1.1", "chunk_tokens": 50, "batch": 4},
    "accumulated": {"version": "v1.1", "chunk_tokens": 50, "batch": 2, "accumulation": 2},
    "of one source": {"version": "v1.1", "chunk_tokens": 50, "batch": 2, "batch_by": "source", "double": True},
    "LoRA": {"version": "v1.1", "chunk_tokens": 50, "batch": 4, "lora_rank": 2},
    "count, one chunk": {"version": "v1.1", "chunk_tokens": 4096, "batch": 4, "count": True},
    "count, many chunks": {"version": "v1.1", "chunk_tokens": 24, "batch": 4, "count": True},
    "count, many chunks kept": {"version": "v1.1", "chunk_tokens": 24, "batch": 4, "keep": 100, "count": True},
    "count, all terms": {"version": "v1.1", "chunk_tokens": 4096, "batch": 4, "count": True, "terms": TERMS},
    "count, all terms, many chunks": {"version": "v1.1", "chunk_tokens": 24, "batch": 4, "count": True, "terms": TERMS},
    "all terms": {"version": "v1.1", "chunk_tokens": 50, "batch": 4, "keep": 60, "terms": TERMS, "double": True},
    "count, accumulated": {"version": "v1.1", "chunk_tokens": 24, "batch": 2, "accumulation": 2, "count": True},
}


@pytest.mark.parametrize("name", ["plain", "cached", "accumulated", "of one source", "LoRA", "all terms"])
def test_two_processes_equal_one_on_the_joined_batch(teacher_rows, tmp_path, two_processes, name):
    """Documents, queries and siblings repeat across the two; the chunk plans differ between them."""
    one = gradients(rows=teacher_rows, folder=tmp_path / "one", **SPREAD[name] | {"batch": 2 * SPREAD[name]["batch"]})
    assert_equal(two_processes[name], one, SPREAD[name].get("double", False))


def test_collectives_are_a_fixed_number(two_processes):
    """Sizes, hashes and embeddings go out, the embeddings' gradients come back, one bucket of gradients is reduced."""
    a_batch = {"c10d::_allgather_base_": 3, "c10d::_reduce_scatter_base_": 1}
    for name in ("one chunk", "many chunks", "many chunks kept", "all terms", "all terms, many chunks"):
        assert two_processes[f"count, {name}"] == a_batch | {"c10d::allreduce_": 1}
    twice = {kind: 2 * number for kind, number in a_batch.items()}
    assert two_processes["count, accumulated"] == twice | {"c10d::allreduce_": 1}


def test_gradients_are_averaged_in_buckets_of_one_type_each_once(monkeypatch):
    """The other process has three times our gradients, and one of a parameter that has none here."""
    reduced = []
    monkeypatch.setattr(gather, "world_size", lambda: 2)
    monkeypatch.setattr(gather, "BUCKET_BYTES", 12)
    monkeypatch.setattr(gather.dist, "all_reduce", lambda flat: reduced.append(flat.tolist()) or flat.mul_(4).add_(2))
    large, small, unused, double, frozen = (
        torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        for shape, dtype in ((3, None), ((1, 1), None), (1, None), ((2, 1), torch.float64), (4, None))
    )
    frozen.requires_grad_(False)
    large.grad, small.grad = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[5.0]])
    double.grad = torch.tensor([[7.0], [8.0]], dtype=torch.float64)
    gather.average_gradients([large, small, unused, frozen, double])
    assert reduced == [[1, 1, 0, 1], [1, 2, 3], [5, 0], [7, 8]]  # first of all, who has a gradient
    found = [parameter.grad.tolist() for parameter in (large, small, unused, double)]
    assert found == [[3, 5, 7], [[11]], [1], [[15], [17]]] and frozen.grad is None  # 4 times and 2, halved


def test_what_no_process_has_a_gradient_for_keeps_none(monkeypatch):
    """Zeros in its place would let weight decay move it."""
    monkeypatch.setattr(gather, "world_size", lambda: 2)
    monkeypatch.setattr(gather.dist, "all_reduce", lambda flat: flat.mul_(2))
    used, unread = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    used.grad = torch.tensor([1.0, 2.0])
    gather.average_gradients([used, unread])
    assert used.grad.tolist() == [1, 2] and unread.grad is None


def test_half_precision_over_many_chunks_is_as_near_as_the_caches(rows, tmp_path, any_bfloat16):
    """One half-precision copy of a weight for all chunks would add up their gradients in half precision."""
    found = {}
    for name, version, bf16 in (("exact", "v1", False), ("plain", "v1", True), ("cached", "v1.1", True)):
        same = {"rows": rows, "dropout": 0.0, "chunk_tokens": 16, "bf16": bf16, "folder": tmp_path / name}
        found[name] = torch.cat([g.flatten() for g in gradients(version, **same).values()])
    off = {name: (found[name] - found["exact"]).norm() for name in ("plain", "cached")}
    assert off["plain"] < 1.2 * off["cached"]


def test_half_precision_is_as_near_as_it_can_be(rows, tmp_path, any_bfloat16):
    same = {"rows": rows, "dropout": 0.1, "chunk_tokens": 40}
    exact, plain, cached = (
        torch.cat([g.flatten() for g in gradients(version, folder=tmp_path / name, bf16=bf16, **same).values()])
        for name, version, bf16 in (("exact", "v1", False), ("plain", "v1", True), ("cached", "v1.1", True))
    )
    assert (plain - exact).norm() > 1e-4 * exact.norm()  # it is half precision
    assert (cached - exact).norm() < 1.5 * (plain - exact).norm() < 0.1 * exact.norm()


def test_a_scaled_backward_reaches_every_chunk():
    """What --fp16 does on a GPU, with the scaler that a CPU has."""
    chunks = [pad([[0, 5, 6, 2]], 1), pad([[0, 7, 2], [0, 9, 2]], 1)]
    encoder = tiny_encoder(dropout=0.1).train()

    def step(scaler, keep):
        encoder.zero_grad()
        torch.manual_seed(4)
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.0)

        def encode(chunk):
            with torch.autocast("cpu", torch.float16, enabled=scaler.is_enabled()):
                return encoder([chunk])

        cache = GradientCache(encode, lambda value: scaler.scale(value).backward(), keep)
        cache(chunks, lambda vectors: info_nce(vectors, vectors, torch.tensor([1, 2, 0]), 0.1))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    exact = step(torch.amp.GradScaler("cpu", enabled=False), 0)
    for keep in (0, 4, 10**9):
        scaled = step(torch.amp.GradScaler("cpu", init_scale=2.0**10), keep)
        assert 0 < (scaled - exact).norm() < 0.02 * exact.norm()
    overflowing = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    assert not torch.isfinite(step(overflowing, 0)).all() and overflowing.get_scale() == 2.0**39


@pytest.mark.parametrize(("device", "compiled"), [("cpu", False), ("cuda", False), ("cuda", True)])
def test_a_replayed_chunk_is_bitwise_the_first_one(device, compiled):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: replay is compared on the CPU alone")
    encoder = tiny_encoder(dropout=0.3).train().to(device)
    if compiled:
        compile_layers(encoder.transformer)
    chunks = [pad([[0, 5, 6, 2]], 1), pad([[0, 7, 2], [0, 9, 2]], 1)]
    chunks = [{name: tensor.to(device) for name, tensor in chunk.items()} for chunk in chunks]
    seen = []

    def encode(chunk):
        seen.append(encoder([chunk]))
        return seen[-1]

    GradientCache(encode, torch.Tensor.backward, 0, one_code=compiled)(chunks, lambda embeddings: embeddings.sum())
    first, again = seen[:2], seen[2:]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert first[0].requires_grad == compiled and again[0].requires_grad
    assert not torch.equal(first[0], encoder([chunks[0]])), "dropout is on"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: flattened and compiled chunks are not compared here")
@pytest.mark.parametrize(("half", "compiled", "bound"), [(False, False, 1e-5), (True, False, 2e-2), (True, True, 2e-2)])
@pytest.mark.parametrize("keep", [0, 40, 10**9])
def test_cached_equals_plain_on_a_gpu(half, compiled, bound, keep):
    """half: bfloat16, which is flattened; its gradients of one batch differ by rounding alone."""
    found = []
    for cached in (False, True):
        encoder = tiny_encoder(dropout=0.2).train().to("cuda")
        encoder.transformer.config.attention_probs_dropout_prob = 0.0
        for layer in encoder.transformer.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        if compiled:
            compile_layers(encoder.transformer)
        torch.manual_seed(2)
        texts = [torch.randint(5, 900, (length,)).tolist() for length in (3, 4, 5, 9, 12, 13, 20, 30)]
        chunks = [pad(texts[i : i + 2], 1) for i in range(0, len(texts), 2)]
        chunks = [{name: tensor.cuda() for name, tensor in chunk.items()} for chunk in chunks]

        def encode(chunk, encoder=encoder):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                return encoder([chunk])

        def loss(embeddings):
            return info_nce(embeddings[:4], embeddings[4:], torch.arange(4, device="cuda"), 0.05)

        if cached:
            GradientCache(encode, torch.Tensor.backward, keep, one_code=compiled)(chunks, loss)
        else:
            loss(torch.cat([encode(chunk) for chunk in chunks])).backward()
        found.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    plain, again = found
    everything = torch.cat([gradient.flatten() for gradient in plain.values()]).norm()
    for name, gradient in plain.items():
        allowed = bound * max(gradient.norm(), 1e-2 * everything)
        assert (again[name] - gradient).norm() <= allowed, name


def test_random_states_are_held_in_few_bytes_and_come_back_exactly():
    torch.manual_seed(4)
    states, chunk, drawn = RandomStates(300), pad([[0, 5, 2]], 1), []
    for number in range(300):
        states.remember(chunk)
        if number % 50 == 49:
            torch.rand(1000)  # fills the generator's state anew
        drawn.append((torch.randn(1), torch.rand(3), torch.empty(13, dtype=torch.int64).random_()))
    assert len(states.whole) < 30
    after = torch.get_rng_state()
    for number in (299, 0, 49, 50, 123, *range(200, 230)):
        with states.replay(number):
            if number % 50 == 49:
                torch.rand(1000)
            again = (torch.randn(1), torch.rand(3), torch.empty(13, dtype=torch.int64).random_())
        assert all(torch.equal(one, other) for one, other in zip(again, drawn[number], strict=True))
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("keep", [0, 40, 10**9])
def test_one_code_for_both_passes_changes_no_gradient(keep):
    """What compiled layers need: the first pass makes graphs too, and drops those that are not kept."""
    found = []
    for one_code in (False, True):
        torch.manual_seed(2)
        encoder = tiny_encoder(dropout=0.2).train()
        chunks = [pad([[0, 5, 6, 2]] * n, 1) for n in (2, 5, 3, 6)]
        cache = GradientCache(lambda chunk, model=encoder: model([chunk]), torch.Tensor.backward, keep, one_code)
        embeddings, kept, _ = cache.embed(chunks)
        assert [graph is not None for graph in kept] == [keep >= tokens for tokens in (8, 28, 40, 64)]
        assert not embeddings.requires_grad
        cache(chunks, lambda outputs: (outputs @ outputs.T).logsumexp(1).sum())
        found.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert_equal(found[1], found[0])


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
