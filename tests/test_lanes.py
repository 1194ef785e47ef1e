"""Chunks in two threads: the same masks, the same gradients, the same each time, and nothing left behind."""

import signal
import threading
import time

import pytest
import torch
from commands import saved_by
from one_step import gradients, tiny_encoder
from test_gradients import assert_equal

from koir import lanes, lora
from koir.gradcache import GradientCache
from koir.kernels import dropout
from koir.lanes import Twin, side_by_side
from koir.tokens import pad

TOKENS = (9, 9, 8, 8, 7, 7, 5, 3)  # one text a chunk, and as many texts as the chunk's number besides


@pytest.fixture(autouse=True)
def _two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def chunks():
    torch.manual_seed(2)
    return [pad([torch.randint(5, 900, (n,)).tolist()] * (place + 1), 1) for place, n in enumerate(TOKENS)]


def step(encoder, keep, twin, half=False, times=1):
    """name -> gradient, the random numbers that come next, and the names of the threads that ran."""
    seen = set()

    def encode(chunk, encoder=encoder):
        seen.add(threading.current_thread().name.split("_")[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return encoder([chunk])

    encoder.zero_grad()
    torch.manual_seed(7)
    for _ in range(times):
        cache = GradientCache(encode, torch.Tensor.backward, keep, twin=twin and twin.refreshed())
        cache(chunks(), lambda vectors: (vectors @ vectors.T).logsumexp(1).sum())
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return found, torch.rand(3), seen


@pytest.mark.parametrize("keep", [0, 40, 10**9])
@pytest.mark.parametrize("times", [1, 2])
def test_a_second_thread_changes_no_gradient_and_no_random_number(keep, times):
    encoder = tiny_encoder(0.2, torch.float64).train()
    (alone, after, one), (found, same, both) = (step(encoder, keep, t, times=times) for t in (None, Twin(encoder)))
    assert_equal(found, alone, double=True)
    assert torch.equal(after, same)
    assert one == {"MainThread"} and both == {"MainThread", "koir-lane"}
    assert not any(name.startswith("transformer.pooler") for name in found)


@pytest.mark.parametrize("keep", [0, 40, 10**9])
def test_it_gives_the_same_bits_each_time(keep):
    encoder = tiny_encoder(0.2).train()
    twin = Twin(encoder)
    first, again = (step(encoder, keep, twin)[0] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("keep", [0, 40, 10**9])
def test_in_half_precision_too(keep, any_bfloat16):
    """torch keeps cast weights in one place for all threads, but those of the twin are others."""
    encoder = tiny_encoder(0.1).train()
    alone, found = (step(encoder, keep, twin, half=True)[0] for twin in (None, Twin(encoder)))
    everything = torch.cat([gradient.flatten() for gradient in alone.values()]).norm()
    for name, gradient in alone.items():
        assert (found[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-2 * everything), name


def test_adapters_alone_get_gradients():
    encoder = tiny_encoder(0.2, torch.float64)
    lora.add_adapters(encoder, 2, 4)
    encoder.train()
    alone, found = (step(encoder, 40, twin)[0] for twin in (None, Twin(encoder)))
    assert alone.keys() == found.keys() and all("lora" in name for name in found)
    for name in alone:
        torch.testing.assert_close(found[name], alone[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", ["embeddings", "encoder.layer.0.output", "encoder.layer.1.output"])
def test_a_model_that_draws_by_itself_stays_in_one_thread(layer):
    encoder = tiny_encoder(0.2, torch.float64).train()
    drawn = encoder.transformer.get_submodule(layer).dropout
    drawn.forward = lambda values: torch.nn.functional.dropout(values, 0.2, drawn.training)
    (alone, after, _), (found, same, threads) = (step(encoder, 40, twin) for twin in (None, Twin(encoder)))
    assert threads == {"MainThread"} and torch.equal(after, same)
    assert_equal(found, alone, double=True)


class DrawsForShortTexts(torch.nn.Dropout):
    """Ours for texts of nine tokens, which the first chunk has; for others torch's, or none at all."""

    def forward(self, values):
        if values.shape[1] == 9:
            return dropout._forward(self, values)
        return values if self.none else torch.nn.functional.dropout(values, self.p, self.training)


@pytest.mark.parametrize("none", [False, True])
def test_a_model_that_draws_otherwise_for_later_chunks_goes_back_to_one_thread(none):
    encoder = tiny_encoder(0.2, torch.float64).train()
    layer = encoder.transformer.encoder.layer[1].output
    layer.dropout = DrawsForShortTexts(0.2)
    layer.dropout.none = none
    twin = Twin(encoder)
    (alone, after, _), (found, same, both) = (step(encoder, 40, t, times=2) for t in (None, twin))
    assert "koir-lane" in both and not twin.fits and torch.equal(after, same)
    assert_equal(found, alone, double=True)
    assert step(encoder, 40, twin)[2] == {"MainThread"}


def test_what_a_step_left_in_the_twin_when_it_ended_early_is_in_no_later_step():
    encoder = tiny_encoder(0.2, torch.float64).train()
    twin, calls = Twin(encoder), []

    def backward(value):
        calls.append(value)
        if len(calls) == 6:
            raise MemoryError
        value.backward()

    cache = GradientCache(lambda chunk, encoder=encoder: encoder([chunk]), backward, twin=twin)
    with pytest.raises(MemoryError):
        cache(chunks(), lambda vectors: vectors.sum())
    assert any(parameter.grad is not None for parameter in twin.model.parameters())
    assert_equal(step(encoder, 0, twin)[0], step(encoder, 0, None)[0], double=True)


@pytest.mark.parametrize("what", [threading.Lock(), torch.ones(2, requires_grad=True) * 2])
def test_a_model_that_cannot_be_copied_is_said_to_have_one_thread(what, capsys):
    encoder = tiny_encoder()
    encoder.transformer.held = [what]
    assert lanes.twin_of(encoder) is None
    assert capsys.readouterr().err.startswith("note: chunks run in one thread, since the model cannot be copied (")


def test_the_twin_has_the_weights_of_the_model_also_after_they_were_replaced():
    encoder = tiny_encoder()
    twin = Twin(encoder)
    weight, other = (model.transformer.encoder.layer[0].output.dense.weight for model in (encoder, twin.model))
    assert other is not weight and other.data_ptr() == weight.data_ptr()
    assert twin.model.tokenizer is encoder.tokenizer
    weight.data = weight.data + 1
    assert other.data_ptr() != weight.data_ptr()
    assert encoder.train() and twin.refreshed().model.training
    assert other.data_ptr() == weight.data_ptr()
    assert encoder.eval() and not twin.refreshed().model.training


def test_gradients_are_handed_over_once():
    encoder = tiny_encoder()
    twin = Twin(encoder)
    (first, second), (ours, theirs) = (list(model.parameters())[:2] for model in (encoder, twin.model))
    first.grad, ours.grad, theirs.grad = torch.ones_like(first), torch.ones_like(first), torch.ones_like(second)
    twin.hand_over()
    twin.hand_over()
    assert (first.grad == 2).all() and (second.grad == 1).all() and ours.grad is None is theirs.grad
    assert all(parameter.grad is None for parameter in list(encoder.parameters())[2:])


def test_even_numbers_run_here_and_odd_ones_beside_with_half_of_the_cores_each():
    torch.set_num_threads(4)
    seen, here = {}, threading.get_ident()

    def work(lane, number):
        seen[number] = lane, threading.get_ident() == here, torch.get_num_threads()

    side_by_side(work, range(1, 6))
    assert seen == {n: (n % 2, n % 2 == 0, 2) for n in range(1, 6)}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("lane", [0, 1])
def test_what_one_thread_raises_ends_the_other_and_is_raised(lane):
    ran = []

    def work(mine, number):
        ran.append(number)
        if mine == lane:
            raise MemoryError(f"number {number}")
        time.sleep(0.05)

    with pytest.raises(MemoryError, match=f"^number {lane}$"):
        side_by_side(work, range(200))
    assert len(ran) < 10 and torch.get_num_threads() == 2


def test_ctrl_c_while_one_thread_waits_ends_the_other():
    ran = []

    def work(lane, number):
        if lane:
            ran.append(number)
            time.sleep(0.05)
            if number == 9:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # which waits

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side(work, range(400))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ran) < 20


def test_seeds_are_used_up_and_no_more_are_drawn():
    with dropout.drawn_seeds() as seeds:
        drawn = [dropout.draw_seed() for _ in range(3)]
    assert seeds == drawn
    before = torch.get_rng_state()
    with dropout.given_seeds(seeds):
        assert [dropout.draw_seed() for _ in range(3)] == drawn
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="fewer than 3"), dropout.given_seeds(seeds):
        dropout.draw_seed()
    with pytest.raises(RuntimeError, match="more dropout masks"), dropout.given_seeds(seeds[:1]):
        dropout.draw_seed(), dropout.draw_seed()
    assert dropout.draw_seed() not in seeds, "torch's generator again"


@pytest.mark.parametrize(
    ("setting", "threads"), [({}, 2), ({"checkpointing": True}, 1), ({"keep": 60}, 2), ({"lora_rank": 2}, 2)]
)
def test_training_takes_a_second_thread_where_it_can(rows, tmp_path, monkeypatch, setting, threads):
    same, seen = {"rows": rows, "dropout": 0.2, "chunk_tokens": 40, "double": True, **setting}, set()
    run = lanes.side_by_side
    monkeypatch.setattr("koir.gradcache.side_by_side", lambda *words: seen.add(2) or run(*words))
    found = gradients("v1.1", folder=tmp_path / "two", **same)
    assert bool(seen) == (threads == 2)
    seen.clear()
    torch.set_num_threads(1)
    assert_equal(found, gradients("v1.1", folder=tmp_path / "one", **same), double=True)
    assert not seen


def test_two_processes_of_two_threads_equal_one_on_the_joined_batch(teacher_rows, tmp_path):
    setting = {"version": "v1.1", "rows": str(teacher_rows), "chunk_tokens": 24, "keep": 50, "double": True}
    (found,) = saved_by("one_step.py", 2, tmp_path / "out.pt", [setting | {"batch": 4}], threads=2)
    torch.set_num_threads(1)
    assert_equal(found, gradients(folder=tmp_path / "one", **setting | {"batch": 8}), double=True)
