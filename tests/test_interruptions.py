"""What ends a run early: each says where it stood and what to do, and saves nothing bad."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from one_step import tiny_encoder, trainer_module
from test_reranker import tiny_reranker
from transformers import TrainerControl, TrainerState

from koir.arguments import LossArguments
from koir.contrast import Contrast, NotFinite
from koir.errors import RunError, refused_by_machine
from koir.manifest import alone
from koir.reranker_training import RerankerTrainer
from koir.runs import command
from koir.runs.interruptions import (
    StopOnBrokenGradient,
    StopOnSignal,
    refuse_broken,
    refuse_broken_gradient,
    smaller_budget,
)
from koir.tokens import pad
from koir.training import EmbeddingTrainer


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


def test_a_signal_that_comes_while_processes_ask_each_other_stops_them_at_the_next_step(stop, monkeypatch):
    asked = []

    def all_reduce(seen, op):  # the other process says nothing
        asked.append(int(seen))
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("koir.runs.interruptions.world_size", lambda: 2)
    monkeypatch.setattr("koir.runs.interruptions.dist.all_reduce", all_reduce)
    for stopped in (False, True):
        control = TrainerControl()
        stop.on_step_end(SimpleNamespace(device="cpu"), TrainerState(), control)
        assert control.should_training_stop == stopped
    assert asked == [0, 1]


def test_after_training_a_signal_ends_the_process_at_once_again(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    stop = StopOnSignal()
    assert signal.getsignal(signal.SIGTERM) != before
    stop.exit_if_signalled(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_broken_gradient_is_named_before_the_optimizer_sees_it():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    refuse_broken_gradient(1, model)
    model[1].bias.grad[0] = float("nan")
    with pytest.raises(RunError, match="step 1: found a gradient of 1.bias that is not finite"):
        refuse_broken_gradient(1, model)


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])  # what DeepSpeed says of gradients that broke
def test_under_deepspeed_a_broken_gradient_ends_the_run_before_it_is_saved(norm):
    engine = SimpleNamespace(get_global_grad_norm=lambda: 0.5)
    settings, state = SimpleNamespace(fp16=False, deepspeed="zero2.json"), TrainerState(global_step=7)
    callback = StopOnBrokenGradient(lambda: engine)
    callback.on_step_end(settings, state, None)
    engine.get_global_grad_norm = lambda: norm
    with pytest.raises(RunError, match="step 7: found gradients that are not finite"):
        callback.on_step_end(settings, state, None)
    callback.on_step_end(SimpleNamespace(fp16=True, deepspeed="zero2.json"), state, None)


def test_broken_embeddings_are_said_with_chunk_and_text():
    tokenizer = tiny_encoder().tokenizer
    sequences = tokenizer(["연차는 며칠인가요", "전세 보증금", "한라산"])["input_ids"]
    chunks = [pad(sequences[:2], tokenizer.pad_token_id), pad(sequences[2:], tokenizer.pad_token_id)]
    embeddings = torch.ones(3, 4)
    refuse_broken(1, embeddings, chunks, tokenizer)
    embeddings[2, 1] = float("inf")
    with pytest.raises(RunError, match="step 1: found 1 embeddings.*chunk 2 of 2, text '한라산'"):
        refuse_broken(1, embeddings, chunks, tokenizer)


@pytest.mark.parametrize("guide", [None, "self"])
@pytest.mark.parametrize("symmetric", [0.0, 0.5])
def test_a_row_whose_loss_is_not_finite_is_found(symmetric, guide):
    arguments = LossArguments(distillation="margin_mse", symmetric_weight=symmetric, guide_model_name_or_path=guide)
    batch = {"inverse": torch.arange(6), "query": torch.arange(3), "document": torch.arange(3, 6),
             "target": torch.arange(3), "query_hash": torch.arange(1, 4), "document_hash": torch.arange(4, 7),
             "known": torch.arange(4, 7)[:, None], "teacher_columns": torch.tensor([[0, 1], [1, 2], [2, 0]]),
             "teacher_scores": torch.tensor([[1.0, 0.0], [3e38, 0.0], [2.0, 1.0]])}  # fmt: skip
    with pytest.raises(NotFinite) as found:
        Contrast(arguments)(torch.nn.functional.normalize(torch.arange(24.0).view(6, 4) + 1), batch)
    assert found.value.rows == [1] and found.value.loss == float("inf")
    batch |= {"teacher_columns": torch.arange(3)[:, None], "teacher_scores": torch.zeros(3, 1)}
    endless = torch.tensor([[-1.0, 1], [1, 1], [1, 2], [0, 1], [1, 0], [float("inf"), 1]])
    with pytest.raises(NotFinite) as found:  # the first row's score there is -inf, the second's left out by a guide
        Contrast(replace(arguments, symmetric_weight=0.0))(endless, batch)
    assert found.value.rows == ([2] if guide else [1, 2])


def test_a_process_that_is_gone_is_said_in_one_line(monkeypatch):
    gone = RuntimeError("[gloo/tcp/unbound_buffer.cc:81] Timed out waiting 15000ms for recv operation to complete")
    assert refused_by_machine(gone) is None, "one process alone waits for no other"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert str(refused_by_machine(gone)).startswith("rank 1: found another process that ended or did not answer")


def test_half_the_budget_is_named_and_written_for_a_retry(tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_RETRY", str(tmp_path / "retry"))
    error = smaller_budget(tmp_path, 4096, 10_000, 512)
    assert "--chunk_tokens 2048 --cache_keep_tokens 5000" in str(error)
    assert "--resume_from_checkpoint" not in str(error), "there is nothing to resume from"
    assert "--chunk_tokens 2048 --cache_keep_tokens 0;" in f"{smaller_budget(tmp_path, 4096, 8000, 512)};"
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-5" / "trainer_state.json").write_text("{}")
    smaller_budget(tmp_path, 4096, 0, 512)
    wanted = ["--output_dir", str(tmp_path), "--chunk_tokens", "2048", "--resume_from_checkpoint", "last"]
    assert (tmp_path / "retry").read_text().split("\n")[:-1] == wanted


def test_where_no_smaller_budget_helps_that_is_said(tmp_path):
    assert "--max_seq_length" in str(smaller_budget(tmp_path, 512, 0, 512))
    assert "--chunk_tokens 1024 --cache_keep_tokens 0" in str(smaller_budget(tmp_path, 1024, 100, 8192))


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """From a trainer's folder to the words of a run with a checkpoint every second step."""
    place = tmp_path_factory.mktemp("base")
    tiny_encoder(dropout=0.1).save(place / "encoder")
    tiny_reranker(place / "reranker")
    small = ["--max_seq_length", "16", "--per_device_train_batch_size", "6", "--chunk_tokens", "64"]
    small += ["--save_steps", "2", "--max_steps", "5", "--learning_rate", "1e-3", "--use_cpu"]

    def of(version, folder, *more):
        base = place / ("reranker" if version == "reranker" else "encoder")
        return [*small, "--model_name_or_path", str(base), "--output_dir", str(folder), *more]

    return of


@pytest.fixture
def at_third_step(monkeypatch):
    """Lets a function see, and change, what a method of a trainer is given in its third step."""

    def disturb(owner, method, change):
        original = getattr(owner, method)

        def disturbed(trainer, values, batch, *more):
            return original(trainer, change(values, batch) if trainer.state.global_step == 2 else values, batch, *more)

        monkeypatch.setattr(owner, method, disturbed)

    return disturb


def test_a_run_that_sigterm_stops_resumes_to_the_weights_of_an_undisturbed_one(words, at_third_step, tmp_path, capsys):
    main, cut = trainer_module("v1.1").main, words("v1.1", tmp_path / "cut")
    main(words("v1.1", tmp_path / "whole"))
    at_third_step(
        EmbeddingTrainer, "contrast", lambda embeddings, _: os.kill(os.getpid(), signal.SIGTERM) or embeddings
    )
    with pytest.raises(SystemExit) as left:
        main(cut)
    assert left.value.code == 143
    assert f"resume with --output_dir {tmp_path / 'cut'} --resume_from_checkpoint last" in capsys.readouterr().out
    assert (tmp_path / "cut/checkpoints/checkpoint-3/trainer_state.json").exists()
    assert not (tmp_path / "cut/model").exists()
    main([*cut, "--resume_from_checkpoint", "last"])
    whole, cut = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def no_number(values, batch):
    """A value of the first chunk's last row is NaN."""
    last = len(batch["chunks"][0]["input_ids"]) - 1
    return values.index_fill(0, torch.tensor([last]), float("nan"))


def too_large(embeddings, batch):
    """The fifth query's scores are beyond float32, though its embedding is finite."""
    large = torch.zeros_like(embeddings)
    large[batch["inverse"][batch["query"][4]], 0] = 3e38
    return embeddings + large


BROKEN = {
    "an embedding": ("v1", [], "contrast", no_number, "1 embeddings that are not finite"),
    "a query": ("v1.1", ["--temperature", "1e-3"], "contrast", too_large, r"a loss of (nan|inf), of 1 queries"),
    "a score": ("reranker", [], "judge", no_number, "a loss of nan, of 1 scores that are not finite"),
    "scores": ("reranker", ["--loss", "binary_cross_entropy"], "judge_chunk", no_number, "a loss of nan, of "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_finite_is_said_and_nothing_is_saved_over_the_checkpoint(
    case, words, at_third_step, tmp_path, capsys
):
    version, more, method, change, said = BROKEN[case]
    checkpoints, good = tmp_path / "run/checkpoints", {}

    def broken(values, batch):
        good.update({file: file.read_bytes() for file in checkpoints.rglob("*") if file.is_file()})
        return change(values, batch)

    at_third_step(RerankerTrainer if version == "reranker" else EmbeddingTrainer, method, broken)
    with pytest.raises(SystemExit) as left:
        trainer_module(version).main(words(version, tmp_path / "run", *more))
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(rf"error: step 3: found {said}.*; first: chunk \d+ of \d+, text '\S", line)
    assert checkpoints / "checkpoint-2/model.safetensors" in good
    assert {file: file.read_bytes() for file in checkpoints.rglob("*") if file.is_file()} == good
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize("clipped", ["1.0", "0"])
def test_a_broken_gradient_is_named_before_clipping_spreads_it(clipped, words, tmp_path, monkeypatch, capsys):
    module, name = trainer_module("v1.1"), "transformer.encoder.layer.0.output.dense.bias"
    original = module.GradCacheTrainer.training_step

    def breaking(self, model, *rest, **more):
        loss = original(self, model, *rest, **more)
        dict(model.named_parameters())[name].grad[1] = float("nan")
        return loss

    monkeypatch.setattr(module.GradCacheTrainer, "training_step", breaking)
    with pytest.raises(SystemExit):
        module.main(words("v1.1", tmp_path, "--max_grad_norm", clipped))
    assert f"step 1: found a gradient of {name} that is not finite" in capsys.readouterr().err


def test_dev_scores_that_a_signal_cut_off_are_made_when_the_run_goes_on(words, at_third_step, tmp_path, monkeypatch):
    """And the best model is chosen with them."""
    module = trainer_module("v1.1")
    monkeypatch.setattr(
        module.GradCacheTrainer,
        "dev_scores",
        lambda self: {"demo/ndcg_at_10": {0: 0.1, 1: 0.2, 2: 0.2, 3: 0.9}.get(self.state.global_step, 0.3)},
    )
    more = ["--eval_tasks", "demo", "--eval_steps", "1", "--load_best_model_at_end", "--save_total_limit", "9"]
    more += ["--save_steps", "1"]
    module.main(words("v1.1", tmp_path / "whole", *more))
    at_third_step(
        EmbeddingTrainer, "contrast", lambda embeddings, _: os.kill(os.getpid(), signal.SIGTERM) or embeddings
    )
    with pytest.raises(SystemExit):
        module.main(words("v1.1", tmp_path / "cut", *more))
    module.main(words("v1.1", tmp_path / "cut", *more, "--resume_from_checkpoint", "last"))
    found = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("whole", "cut")]
    scored = [[line["step"] for line in lines if "demo/ndcg_at_10" in line] for lines in found]
    assert scored[0] == scored[1] == [0, 1, 2, 3, 4, 5]
    saved = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert saved[0] == saved[1] == (tmp_path / "whole/checkpoints/checkpoint-3/model.safetensors").read_bytes()


def scored(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [(line["step"], line["demo/ndcg_at_10"]) for line in lines if "demo/ndcg_at_10" in line]


STOPS = {
    "the last step": (["--eval_steps", "2", "--save_steps", "2", "--max_steps", "3"], 3, {3: 0.9}),
    "within an epoch": (["--eval_strategy", "epoch", "--save_strategy", "epoch"], 3, {2: 0.5, 3: 0.9}),
    "an epoch's end": (["--eval_strategy", "epoch", "--save_strategy", "epoch"], 2, {2: 0.9}),
    "the last epoch's end": (["--eval_strategy", "epoch", "--save_strategy", "epoch"], 4, {4: 0.9}),
    "an epoch's end, saved by steps": (["--eval_strategy", "epoch", "--save_steps", "2"], 2, {}),
}


@pytest.mark.parametrize("case", STOPS)
def test_scores_and_the_best_model_are_those_of_an_undisturbed_run(case, words, tmp_path, monkeypatch):
    """Wherever a signal comes: no score is missing, and none is made where there would be none."""
    flags, stop, scores = STOPS[case]
    module, rows = trainer_module("v1.1"), tmp_path / "rows.jsonl"
    trainer, main = module.GradCacheTrainer, module.main
    rows.write_text("".join(json.dumps({"query": f"{n}?", "document": f"{n}."}) + "\n" for n in range(12)))
    flags = ["--train_data", str(rows), "--max_steps", "-1", "--num_train_epochs", "2", *flags]
    flags += ["--eval_tasks", "demo", "--save_total_limit", "9", *["--load_best_model_at_end"] * bool(scores)]
    read_tasks = command.read_tasks
    monkeypatch.setattr(command, "read_tasks", lambda evaluation: (read_tasks(evaluation)[0], []))  # no table
    of_step = lambda self: {"demo/ndcg_at_10": scores.get(self.state.global_step, 0.3)}  # noqa: E731
    monkeypatch.setattr(trainer, "dev_scores", of_step)
    main(words("v1.1", tmp_path / "whole", *flags))
    step, pid = trainer.training_step, os.getpid()

    def signalled(self, *values):
        if self.state.global_step + 1 == stop:
            os.kill(pid, signal.SIGTERM)
        return step(self, *values)

    monkeypatch.setattr(trainer, "training_step", signalled)
    with pytest.raises(SystemExit):
        main(words("v1.1", tmp_path / "cut", *flags))
    assert [place.name for place in (tmp_path / "cut/checkpoints").iterdir()].count(f"checkpoint-{stop}") == 1
    monkeypatch.setattr(trainer, "training_step", step)
    main(words("v1.1", tmp_path / "cut", *flags, "--resume_from_checkpoint", "last"))
    assert scored(tmp_path / "cut") == scored(tmp_path / "whole")
    whole, cut = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_files_of_a_checkpoint_that_were_cut_are_named(words, tmp_path, capsys):
    main, flags = trainer_module("v1.1").main, words("v1.1", tmp_path / "run", "--max_steps", "2", "--save_steps", "1")
    main(flags)
    (tmp_path / "run/run.json").unlink()
    checkpoint = tmp_path / "run/checkpoints/checkpoint-1"
    (tmp_path / "run/checkpoints/.checkpoint-2.1.partial").mkdir()
    resumed = [*flags, "--resume_from_checkpoint", str(checkpoint)]
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[:300])
        with pytest.raises(SystemExit) as left:
            main(resumed)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert left.value.code == 2 and line.startswith(f"error: {checkpoint}/{name}: found something else (")
        (checkpoint / name).write_bytes(whole)
    main(resumed)
    assert not [*(tmp_path / "run/checkpoints").glob(".*")]


def counted(folder):
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {name: facts.get(name) for name in ("steps", "negatives_per_query", "random_negatives", "negatives")}


@pytest.mark.parametrize("version", ["v1", "v1.1", "reranker"])
def test_a_run_that_was_killed_after_its_last_step_makes_no_more(version, words, tmp_path):
    main, flags = trainer_module(version).main, words(version, tmp_path / "run", "--save_steps", "5")
    main([*flags, "--lr_scheduler_type", "constant", "--warmup_steps", "0"])
    before, model = counted(tmp_path / "run"), (tmp_path / "run/model/model.safetensors").read_bytes()
    (tmp_path / "run/run.json").unlink()
    main([*flags, "--lr_scheduler_type", "constant", "--warmup_steps", "0", "--resume_from_checkpoint", "last"])
    assert counted(tmp_path / "run") == before and before["steps"] == 5 and before["negatives_per_query"] > 0
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == model
    lines = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").open()]
    assert lines == [1, 2, 3, 4, 5]


def test_a_part_of_an_epoch_is_trained_once(words, tmp_path):
    main, flags = trainer_module("v1.1").main, words("v1.1", tmp_path / "run", "--save_steps", "1")
    flags += ["--max_steps", "-1", "--num_train_epochs", "0.011"]
    main(flags)
    before, model = counted(tmp_path / "run"), (tmp_path / "run/model/model.safetensors").read_bytes()
    (tmp_path / "run/run.json").unlink()
    main([*flags, "--resume_from_checkpoint", "last"])
    assert counted(tmp_path / "run") == before and before["steps"] == 2
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == model


def test_a_resumed_run_counts_on_and_what_came_after_is_set_aside(words, tmp_path, capsys):
    main, flags = trainer_module("v1.1").main, words("v1.1", tmp_path / "run", "--save_total_limit", "9")
    main(flags)
    whole, checkpoints = counted(tmp_path / "run"), tmp_path / "run/checkpoints"
    (tmp_path / "run/run.json").unlink()
    before = (checkpoints / "checkpoint-4/model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        main([*flags, "--seed", "7", "--resume_from_checkpoint", str(checkpoints / "checkpoint-2")])
    assert not [*checkpoints.glob("left-*")], "a run that is refused changes nothing"
    main([*flags, "--resume_from_checkpoint", str(checkpoints / "checkpoint-2")])
    assert counted(tmp_path / "run") == whole
    (kept,) = checkpoints.glob("left-*-checkpoint-4")
    assert f"note: checkpoint-4 is of a later step; it is kept as {kept}" in capsys.readouterr().err
    assert (kept / "model.safetensors").read_bytes() == before
    assert {"checkpoint-2", "checkpoint-4", "checkpoint-5"} < {folder.name for folder in checkpoints.iterdir()}


def rates(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [line["learning_rate"] for line in lines if "learning_rate" in line]


def test_a_learning_rate_that_is_changed_holds_from_where_the_run_goes_on(words, tmp_path):
    main, flags = trainer_module("v1.1").main, words("v1.1", tmp_path / "run", "--weight_decay", "0.1")
    main([*flags, "--lr_scheduler_type", "linear", "--save_total_limit", "9"])
    whole = rates(tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    file = tmp_path / "run/checkpoints/checkpoint-2/optimizer.pt"
    state = torch.load(file, weights_only=True)
    for group in state["param_groups"]:
        group["k"] = 7  # as schedule-free optimizers keep their state there
    torch.save(state, file)
    more = ["--learning_rate", "1e-4", "--weight_decay", "0", "--save_total_limit", "9"]
    more += ["--adam_beta2", "0.9", "--adam_epsilon", "1e-6"]
    main([*flags, *more, "--resume_from_checkpoint", str(tmp_path / "run/checkpoints/checkpoint-2")])
    assert rates(tmp_path / "run") == [*whole[:2], *(pytest.approx(rate / 10) for rate in whole[2:])] and whole[4] > 0
    state = torch.load(tmp_path / "run/checkpoints/checkpoint-5/optimizer.pt", weights_only=True)
    kept = {(group["weight_decay"], group["k"], group["betas"], group["eps"]) for group in state["param_groups"]}
    assert kept == {(0.0, 7, (0.9, 0.9), 1e-6)}
    assert "learning_rate: 0.0001\n" in (tmp_path / "run/recipe.yaml").read_text(encoding="utf-8")


def test_a_checkpoint_of_another_place_writes_where_it_is_told_to(words, tmp_path, monkeypatch, capsys):
    main, flags = trainer_module("v1.1").main, words("v1.1", tmp_path / "run")
    main(flags)
    copy = tmp_path / "project/backup/checkpoint-4"
    copy.parent.mkdir(parents=True)
    (tmp_path / "run/checkpoints/checkpoint-4").rename(copy)
    (tmp_path / "project/model").mkdir()
    (tmp_path / "project/model/notes.txt").write_text("precious")
    from_copy = [*flags, "--resume_from_checkpoint", str(copy)]
    at = from_copy.index("--output_dir")
    for out, said in (
        ([], f"no run's checkpoints/ folder around it, but {copy.parent}; expected --output_dir too"),
        (["--output_dir", str(tmp_path / "project")], "a model/ folder that no run wrote"),
        (["--output_dir", str(tmp_path / "run")], "a complete run"),
    ):
        with pytest.raises(SystemExit):
            main([*from_copy[:at], *out, *from_copy[at + 2 :]])
        assert said in capsys.readouterr().err
    assert sorted(file.name for file in (tmp_path / "project").iterdir()) == ["backup", "model"]
    (tmp_path / "run/run.json").unlink()
    with pytest.raises(SystemExit):
        main(from_copy)
    assert "an unfinished run (checkpoint-5)" in capsys.readouterr().err
    main([*from_copy[:at], "--output_dir", str(tmp_path / "new"), *from_copy[at + 2 :]])
    assert counted(tmp_path / "new")["steps"] == 5


def test_the_best_checkpoint_of_a_run_that_was_moved(words, tmp_path, monkeypatch):
    module, more = trainer_module("v1.1"), ["--eval_tasks", "demo", "--eval_steps", "1", "--save_steps", "1"]
    score = {1: 0.1, 2: 0.9}
    of_step = lambda self: {"demo/ndcg_at_10": score.get(self.state.global_step, 0.3)}  # noqa: E731
    monkeypatch.setattr(module.GradCacheTrainer, "dev_scores", of_step)
    more += ["--load_best_model_at_end", "--save_total_limit", "9"]
    module.main(words("v1.1", tmp_path / "run", *more))
    best = (tmp_path / "run/checkpoints/checkpoint-2/model.safetensors").read_bytes()
    (tmp_path / "run/run.json").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    module.main(words("v1.1", tmp_path / "moved", *more, "--resume_from_checkpoint", "last"))
    assert (tmp_path / "moved/model/model.safetensors").read_bytes() == best


def test_two_trainings_in_one_folder(words, tmp_path, capsys):
    flags = words("v1.1", tmp_path / "run")
    (tmp_path / "run").mkdir()
    with alone(tmp_path / "run", "waits"), pytest.raises(SystemExit):
        trainer_module("v1.1").main(flags)
    said = f"error: --output_dir {tmp_path / 'run'}: found another process that trains there; expected its end first"
    assert said in capsys.readouterr().err
    trainer_module("v1.1").main(flags)


def test_a_run_that_is_refused_leaves_no_folder(words, tmp_path):
    with pytest.raises(SystemExit):
        trainer_module("v1.1").main(words("v1.1", tmp_path / "run", "--train_data", "nope.jsonl"))
    assert not (tmp_path / "run").exists()


def test_v1_without_memory_says_what_helps_it(words, tmp_path, monkeypatch, capsys):
    module = trainer_module("v1")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(module.InfoNCETrainer, "training_step", full)
    with pytest.raises(SystemExit):
        module.main(words("v1", tmp_path / "run"))
    found = "memory: found none left with --per_device_train_batch_size 6; expected a smaller one, or v1.1"
    assert found in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seed", "7"], "found --seed 7; expected 42, as the run began"),
        (["--per_device_train_batch_size", "7"], "found batch of all processes 7; expected 6"),
        (["--gradient_accumulation_steps", "2"], "found --gradient_accumulation_steps 2; expected 1"),
        (["--train_data", "ROWS"], "found --train_data of fingerprint"),
    ],
)
def test_a_run_goes_on_with_the_rows_and_batches_it_began_with(flags, said, words, tmp_path, capsys):
    main, begun = trainer_module("v1.1").main, words("v1.1", tmp_path / "run", "--save_steps", "1")
    main([*begun, "--max_steps", "1"])
    (tmp_path / "run/run.json").unlink()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "가", "document": "나"}\n{"query": "다", "document": "라"}\n', encoding="utf-8")
    flags = [str(rows) if flag == "ROWS" else flag for flag in flags]
    with pytest.raises(SystemExit):
        main([*begun, *flags, "--resume_from_checkpoint", "last"])
    assert said in capsys.readouterr().err


def test_last_without_a_folder_is_the_newest_unfinished_run(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = trainer_module("v1.1").main
    flags = words("v1.1", "none")
    del flags[flags.index("--output_dir") : flags.index("--output_dir") + 2]
    for started in ("20260101-000000", "20260102-000000"):
        monkeypatch.setenv("KOIR_STARTED", started)
        main(flags)
    monkeypatch.setenv("KOIR_STARTED", "20260103-000000")
    with pytest.raises(SystemExit):
        main([*flags, "--resume_from_checkpoint", "last"])
    assert "expected one to resume from, or --output_dir" in capsys.readouterr().err
    runs = sorted((tmp_path / "outputs").iterdir())
    (runs[0] / "run.json").unlink()
    other = tmp_path / "outputs/v1.1-run-large-20260104-000000"  # of another recipe
    shutil.copytree(runs[0], other)
    main([*flags, "--max_steps", "6", "--resume_from_checkpoint", "last"])
    assert json.loads((runs[0] / "run.json").read_text())["steps"] == 6 and not (other / "run.json").exists()
