"""Which checkpoints count as whole: one that was cut short is never resumed from."""

import json
from types import SimpleNamespace

import pytest

from koir.arguments import DataArguments, LossArguments, ModelArguments, TrainingArguments
from koir.errors import RunError
from koir.runs.averaging import WeightArguments
from koir.runs.folder import complete, keep_lines, require_same, run_folder


def checkpoint(folder, step, state='{"global_step": 1}', ranks=()):
    place = folder / "checkpoints" / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(state)
    for rank in ranks:
        (place / f"rng_state_{rank}.pth").write_text("")
    return place


def test_a_checkpoint_cut_short_is_not_whole(tmp_path, monkeypatch):
    assert complete(checkpoint(tmp_path, 1))
    assert not complete(checkpoint(tmp_path, 2, state='{"global_st'))
    assert not complete(tmp_path / "checkpoints" / "checkpoint-3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert complete(checkpoint(tmp_path, 4, ranks=(0, 1)))
    assert not complete(checkpoint(tmp_path, 5, ranks=(0,)))


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


def checkpoint_of(folder, step):
    """A folder of any name with the state of a step."""
    there = folder / "good"
    there.mkdir(parents=True)
    (there / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return str(there)


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


def test_lines_after_the_checkpoint_and_cut_lines_go(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    keep_lines(file, checkpoint_of(tmp_path, 2))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]


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
    for rank in range(2):
        (checkpoint / f"rng_state_{rank}.pth").write_bytes(b"")
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
