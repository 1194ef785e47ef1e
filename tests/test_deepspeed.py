"""DeepSpeed through the Trainer: two processes end in the weights of one without it."""

import json
import sys

import pytest
import torch
from commands import HERE, run, saved_by
from deepspeed_run import train

from koir.arguments import TrainingArguments
from koir.errors import FlagError
from koir.zero import require_agreement

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed needs Linux")


@pytest.mark.parametrize(
    ("version", "stage", "accumulation", "keep"),
    [("v1.1", 1, 1, 0), ("v1.1", 2, 2, 60), ("v1.1", 3, 2, 0), ("v1", 3, 1, 0)],
)
def test_five_steps_end_in_the_weights_of_one_process(rows, tmp_path, version, stage, accumulation, keep):
    settings = {"version": version, "rows": str(rows), "accumulation": accumulation, "keep": keep}
    batch = 8 // accumulation
    one = train(folder=tmp_path / "one", batch=batch, **settings)
    two = saved_by("deepspeed_run.py", 2, tmp_path / "two.pt", settings | {"batch": batch // 2, "stage": stage})
    assert two.keys() == one.keys()
    for name, weight in one.items():
        assert (two[name] - weight).abs().max() < 1e-4, name


def test_a_process_that_nobody_launched_needs_no_mpi(rows, tmp_path):
    settings = {"version": "v1.1", "rows": str(rows), "accumulation": 1, "batch": 8}
    done = run(HERE / "deepspeed_run.py", tmp_path / "alone.pt", json.dumps(settings | {"stage": 2}))
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "alone.pt", weights_only=True)
    for name, weight in train(folder=tmp_path / "one", **settings).items():
        assert (found[name] - weight).abs().max() < 1e-4, name


AUTO = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"zero_optimization": {"stage": 0}} | AUTO, "zero_optimization.stage: found 0; expected 1, 2 or 3"),
        (AUTO, "zero_optimization.stage: found None"),
        ({"zero_optimization": {"stage": 2}}, 'train_batch_size: found nothing; expected "auto"'),
        (
            {"zero_optimization": {"stage": 2}} | AUTO | {"gradient_accumulation_steps": None},
            'gradient_accumulation_steps: found nothing; expected "auto"',
        ),
        ({"zero_optimization": {"stage": 3}} | AUTO, "gather_16bit_weights_on_model_save: found None; expected true"),
        ("{", "found broken JSON"),
        ("[1]", "found list; expected v1.1/recipes/zero1.json"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_by_its_name(config, found, tmp_path):
    file, text = tmp_path / "zero.json", config if isinstance(config, str) else json.dumps(config)
    file.write_text(text)
    for given in (str(file), text) if text.startswith("{") else (str(file),):
        with pytest.raises(FlagError) as error:
            TrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=given)
        assert found in str(error.value)
        assert str(error.value).startswith(f"--deepspeed {file}" if given == str(file) else "--deepspeed")
    with pytest.raises(FlagError, match="found no such file; .* did you mean zero.json"):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=str(tmp_path / "zer.json"))


def test_a_batch_that_contradicts_the_flags_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("koir.arguments.be_the_only_process", lambda: None)  # later tests are not
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")  # and transformers sets it
    given = json.dumps({"zero_optimization": {"stage": 2}} | AUTO | {"train_micro_batch_size_per_gpu": 77})
    with pytest.raises(FlagError, match="--deepspeed: found train_micro_batch_size_per_gpu=77 against the flags' per_"):
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, deepspeed=given)


def test_numbers_that_contradict_the_flags_are_refused():
    with pytest.raises(FlagError, match=r"zero.json: found train_batch_size=77 against the flags' batch=64; expected"):
        require_agreement("zero.json", ["- ds train_batch_size=77 vs hf batch=64"])
    require_agreement("zero.json", [])
