"""Which checkpoints count as whole: one that was cut short is never resumed from."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from koir.arguments import DataArguments, LossArguments, ModelArguments, TrainingArguments
from koir.errors import RunError, UserError
from koir.runs.averaging import WeightArguments
from koir.runs.folder import (
    complete,
    keep_lines,
    read_counters,
    read_state,
    remove_half_written,
    require_same,
    run_folder,
)


def checkpoint(folder, step, state='{"global_step": 1}', ranks=()):
    place = folder / "checkpoints" / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(state)
    states = [f"rng_state_{rank}.pth" for rank in ranks] or ["rng_state.pth"]
    for name in ("optimizer.pt", "scheduler.pt", *states):
        (place / name).write_text("")
    return place


def test_a_checkpoint_cut_short_is_not_whole(tmp_path, monkeypatch):
    assert complete(checkpoint(tmp_path, 1))
    assert not complete(checkpoint(tmp_path, 2, state='{"global_st'))
    assert not complete(tmp_path / "checkpoints" / "checkpoint-3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert complete(checkpoint(tmp_path, 4, ranks=(0, 1)))
    assert not complete(checkpoint(tmp_path, 5, ranks=(0,)))


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_lost_a_file_is_named_with_it(lost, tmp_path):
    place = checkpoint(tmp_path, 1)
    (place / lost).unlink()
    for words in ("last", str(place)):
        args = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint=words, use_cpu=True)
        with pytest.raises(RunError, match=f"no complete checkpoint: checkpoint-1 lacks {lost}; expected") as error:
            run_folder(args, "run")
        assert "without --resume" not in str(error.value), "which would be refused as well"
    (place / "latest").write_text("global_step1")
    assert complete(place) == (lost != "rng_state.pth"), "DeepSpeed has files of its own"


@pytest.mark.parametrize("step", ['"2"', "null", "2.5", "true"])
def test_a_step_that_is_no_whole_number_is_no_checkpoints(step, tmp_path):
    assert not complete(checkpoint(tmp_path, 2, state=f'{{"global_step": {step}}}'))


@pytest.mark.parametrize(
    "text", ['{"global_step": 2}', '{"global_step": 2, "epoch": 1.0, "more": 1}', "[]",
             '{"global_step": 2, "epoch": "1"}', '{"global_step": 2, "epoch": 1.0, "log_history": [{}]}']
)  # fmt: skip
def test_a_state_that_was_changed_is_named(text, tmp_path):
    with pytest.raises(RunError, match="trainer_state.json: found .*; expected the file as training wrote it"):
        read_state(checkpoint(tmp_path, 2, state=text))


@pytest.mark.parametrize("text", ["{}", "[]", "1", '{"began": {', '{"began": {}, "counted": {"steps": "2"}}'])
def test_counters_that_were_changed_are_named(text, tmp_path):
    (tmp_path / "counters.json").write_text(text)
    with pytest.raises(RunError, match="counters.json: found .*; expected the file as training wrote it"):
        read_counters(str(tmp_path), {"--seed": 1})


def test_last_is_the_newest_whole_one(tmp_path):
    checkpoint(tmp_path, 9)
    wanted = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, state="")
    args = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="last", use_cpu=True)
    assert run_folder(args, "run") == (str(tmp_path), str(wanted))


def test_a_named_checkpoint_must_be_whole(tmp_path):
    place = checkpoint(tmp_path, 3, state="{")
    args = TrainingArguments(resume_from_checkpoint=str(place), use_cpu=True)
    with pytest.raises(RunError, match="no complete checkpoint"):
        run_folder(args, "run")
    args = TrainingArguments(resume_from_checkpoint=str(tmp_path), use_cpu=True)
    with pytest.raises(RunError, match=f"expected last, beside --output_dir {tmp_path}"):
        run_folder(args, "run")


def checkpoint_of(folder, step):
    """A folder of any name with the state of a step."""
    there = folder / "good"
    there.mkdir(parents=True)
    state_of(step, {"step": step, "eval_demo/ndcg_at_10": 0.5}).save_to_json(str(there / "trainer_state.json"))
    return str(there)


def state_of(step, *lines):
    return TrainerState(global_step=step, epoch=1.0, train_batch_size=2, log_history=list(lines))


def test_other_flags_of_model_rows_or_loss_are_refused_on_resuming(tmp_path, capsys):
    checkpoint = tmp_path / "run/checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    groups = {"model": ModelArguments(), "data": DataArguments(), "loss": LossArguments(temperature=0.05)}
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-4)
    groups |= {"weights": WeightArguments(), "training": args}
    require_same(checkpoint, tmp_path / "run", groups)  # of a run without a recipe nothing is known
    (tmp_path / "run/recipe.yaml").write_text("temperature: 0.05\nlora_targets: []\nmodel_name_or_path: demo\n")
    require_same(checkpoint, tmp_path / "run", groups)
    groups["loss"].temperature, groups["model"].lora_targets = 0.02, ["query", "key"]
    groups["model"].model_name_or_path = groups["loss"].guide_model_name_or_path = "moved"
    with pytest.raises(
        RunError, match="query key, --temperature 0.02; expected --lora_targets none, --temperature 0.05,"
    ):
        require_same(checkpoint, tmp_path / "run", groups)
    require_same(checkpoint, tmp_path / "another", groups)
    said = capsys.readouterr().err
    groups["loss"], groups["model"] = LossArguments(temperature=0.05), ModelArguments()
    (tmp_path / "run/recipe.yaml").write_text("temperature: 0.05\nlearning_rate: 0.0002\nnum_train_epochs: 1.0\n")
    require_same(checkpoint, tmp_path / "run", groups)
    assert "note: --learning_rate 0.0001 from here on; " in (late := capsys.readouterr().err)
    assert late.endswith(" was trained with --learning_rate 0.0002\n")
    assert said.startswith("note: --lora_targets query key, --temperature 0.02 from here on; ")


def test_every_flag_of_training_that_is_changed_is_said(tmp_path, capsys):
    checkpoint = tmp_path / "run/checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    groups = {"model": ModelArguments(), "data": DataArguments(), "loss": LossArguments(), "weights": WeightArguments()}
    (tmp_path / "run/recipe.yaml").write_text("max_grad_norm: 0.5\nlr_scheduler_type: cosine\n")
    groups["training"] = TrainingArguments(output_dir="x", use_cpu=True, lr_scheduler_type="cosine", max_grad_norm=0.5)
    require_same(checkpoint, tmp_path / "run", groups)
    assert not capsys.readouterr().err
    flags = {"weight_decay": 0.3, "adam_beta2": 0.98, "max_steps": 7, "lr_scheduler_kwargs": {"a": 1}}
    groups["training"] = TrainingArguments(output_dir="x", use_cpu=True, **flags)
    groups["training"].bf16 = True  # where the chip has it
    require_same(checkpoint, tmp_path / "run", groups)
    now, before = capsys.readouterr().err.split(" from here on; ")
    told = {"max_steps": ("7", "-1"), "lr_scheduler_type": ("linear", "cosine"), "bf16": ("true", "false"),
            "lr_scheduler_kwargs": ("{'a': 1}", "none"), "weight_decay": ("0.3", "0.0"),
            "adam_beta2": ("0.98", "0.999"), "max_grad_norm": ("1.0", "0.5")}  # fmt: skip
    for flag, (new, old) in told.items():
        assert f"--{flag} {new}" in now and f"--{flag} {old}" in before


@pytest.mark.parametrize("text", ["", "- a", "a: [b", "5"])
def test_a_recipe_that_is_none_any_more_is_named(text, tmp_path):
    checkpoint = tmp_path / "run/checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").write_text(text)
    groups = {"model": ModelArguments(), "data": DataArguments(), "loss": LossArguments(), "weights": WeightArguments()}
    groups["training"] = TrainingArguments(output_dir="x", use_cpu=True)
    with pytest.raises(UserError, match="run/recipe.yaml: found .*as the run wrote"):
        require_same(checkpoint, tmp_path / "run", groups)


def test_lines_after_the_checkpoint_and_cut_lines_go(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    keep_lines(file, checkpoint_of(tmp_path, 2))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("odd", ["1", '{"a": 1}', '{"step": "2"}', "null"])
def test_what_is_no_line_of_training_is_named(odd, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + odd + "\n")
    with pytest.raises(RunError, match='metrics.jsonl, line 2: found .*; expected a line of training, with its "step"'):
        keep_lines(tmp_path / "metrics.jsonl", checkpoint_of(tmp_path, 2))
    assert (tmp_path / "metrics.jsonl").read_text().endswith(odd + "\n")


def test_scores_that_the_checkpoint_does_not_know_of_go_too(tmp_path):
    file, place = tmp_path / "metrics.jsonl", Path(checkpoint_of(tmp_path, 2))
    file.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n{"step": 2, "demo/ndcg_at_10": 0.5}\n')
    lines = file.read_text().splitlines()
    keep_lines(file, str(place))
    assert file.read_text().splitlines() == lines
    state_of(2).save_to_json(str(place / "trainer_state.json"))
    keep_lines(file, str(place))
    assert file.read_text().splitlines() == lines[:2], "they are made again when the run goes on"


def test_what_killed_processes_half_wrote_of_weights_is_removed(tmp_path):
    kept = ["checkpoints/checkpoint-2", ".notes.partial"]
    half = [".model.1.partial", "checkpoints/.checkpoint-3.1.partial"]
    for name in kept + half:
        (tmp_path / name).mkdir(parents=True)
    remove_half_written(tmp_path)
    assert {file.name for file in tmp_path.rglob("*")} == {"checkpoints", "checkpoint-2", ".notes.partial"}


def test_the_bases_line_stays_with_a_checkpoint_and_goes_without(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (0, 1, 2)))
    keep_lines(file, checkpoint_of(tmp_path, 1))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 1]
    keep_lines(file, None)
    assert file.read_text() == ""


@pytest.mark.parametrize("world", ["2", "4"])
def test_a_run_of_other_processes_is_unfinished_too(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world)
    checkpoint = tmp_path / "checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (tmp_path / "checkpoints/checkpoint-2-copy").mkdir()
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    for name in ("rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "scheduler.pt"):
        (checkpoint / name).write_bytes(b"")
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=None)
    with pytest.raises(RunError, match="an unfinished run"):
        run_folder(args, "v1.1")
    args.resume_from_checkpoint = "last"
    if world == "2":
        assert run_folder(args, "v1.1") == (str(tmp_path), str(checkpoint))
        return
    with pytest.raises(RunError, match="of checkpoint-2 2 processes wrote their part, and this is 4"):
        run_folder(args, "v1.1")


def test_a_model_that_no_run_wrote_is_not_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=None)
    with pytest.raises(RunError, match="a model/ folder that no run wrote"):
        run_folder(args, "v1.1")
