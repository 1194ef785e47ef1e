"""What ends a run early: each says where it stood and what to do, and saves nothing bad."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from one_step import tiny_encoder
from transformers import TrainerControl, TrainerState

from koir.errors import RunError
from koir.interruptions import (
    StopOnBrokenGradient,
    StopOnSignal,
    refuse_broken,
    refuse_broken_loss,
    smaller_budget,
)
from koir.tokens import pad


@pytest.fixture
def stop():
    before = signal.getsignal(signal.SIGTERM)
    yield StopOnSignal()
    signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_stops_and_exits_with_143(stop, tmp_path, capsys):
    control = TrainerControl()
    stop.on_step_end(SimpleNamespace(), TrainerState(), control)
    assert not control.should_training_stop
    os.kill(os.getpid(), signal.SIGTERM)
    stop.on_step_end(SimpleNamespace(), TrainerState(), control)
    assert control.should_training_stop and control.should_save
    with pytest.raises(SystemExit) as left:
        stop.exit_if_signalled(tmp_path)
    assert left.value.code == 143
    assert f"--output_dir {tmp_path} --resume_from_checkpoint last" in capsys.readouterr().out


def test_after_training_a_signal_ends_the_process_at_once_again(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stop = StopOnSignal()
    assert signal.getsignal(signal.SIGTERM) != before
    stop.exit_if_signalled(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_broken_gradient_is_named_before_the_optimizer_sees_it():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    settings = SimpleNamespace(fp16=False, deepspeed=None)
    callback, state = StopOnBrokenGradient(), TrainerState()
    callback.on_pre_optimizer_step(settings, state, None, model=model)
    model[1].bias.grad[0] = float("nan")
    with pytest.raises(RunError, match="step 1: found a gradient of 1.bias that is not finite"):
        callback.on_pre_optimizer_step(settings, state, None, model=model)
    callback.on_pre_optimizer_step(SimpleNamespace(fp16=True, deepspeed=None), state, None, model=model)


def test_broken_embeddings_are_said_with_chunk_and_text():
    tokenizer = tiny_encoder().tokenizer
    sequences = tokenizer(["연차는 며칠인가요", "전세 보증금", "한라산"])["input_ids"]
    chunks = [pad(sequences[:2], tokenizer.pad_token_id), pad(sequences[2:], tokenizer.pad_token_id)]
    embeddings = torch.ones(3, 4)
    refuse_broken(1, embeddings, chunks, tokenizer)
    embeddings[2, 1] = float("inf")
    with pytest.raises(RunError, match="step 1: found 1 embeddings.*chunk 2 of 2, text '한라산'"):
        refuse_broken(1, embeddings, chunks, tokenizer)


def test_a_broken_loss_is_refused():
    refuse_broken_loss(3, torch.tensor(1.0))
    with pytest.raises(RunError, match="step 3: found a loss of nan"):
        refuse_broken_loss(3, torch.tensor(float("nan")))


def test_half_the_budget_is_named_and_written_for_a_retry(tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_RETRY", str(tmp_path / "retry"))
    error = smaller_budget(tmp_path, 4096, 10_000, 512)
    assert "--chunk_tokens 2048 --cache_keep_tokens 5000" in str(error)
    assert "--resume_from_checkpoint" not in str(error), "there is nothing to resume from"
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-5" / "trainer_state.json").write_text("{}")
    smaller_budget(tmp_path, 4096, 0, 512)
    wanted = ["--output_dir", str(tmp_path), "--chunk_tokens", "2048", "--resume_from_checkpoint", "last"]
    assert (tmp_path / "retry").read_text().split("\n")[:-1] == wanted


def test_where_no_smaller_budget_helps_that_is_said(tmp_path):
    assert "--max_seq_length" in str(smaller_budget(tmp_path, 512, 0, 512))
