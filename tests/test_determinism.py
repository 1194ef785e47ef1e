"""The same seed gives the same bytes, whatever else is asked for beside the training."""

import json
import re

import pytest
import torch
from one_step import tiny_encoder, trainer_module

import evaluate

BESIDE = ["--dataloader_num_workers", "2", "--logging_steps", "3", "--eval_tasks", "demo", "--eval_steps", "3"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_encoder(dropout=0.1).save(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["v1", "v1.1", "reranker"])
def train(request, base, tmp_path_factory):
    """A tiny training as a function of further flags; it gives the weights' bytes."""
    main = trainer_module(request.param).main
    words = ["--model_name_or_path", base, "--max_seq_length", "32", "--per_device_train_batch_size", "8", "--use_cpu"]

    def run(*more):
        folder = tmp_path_factory.mktemp("run") / "run"
        main([*words, "--max_steps", "4", "--learning_rate", "1e-3", "--output_dir", str(folder), *more])
        return (folder / "model" / "model.safetensors").read_bytes()

    return run


def test_workers_log_steps_and_evaluation_change_no_weight(train):
    plain = train()
    assert train() == plain, "the same seed"
    assert train("--seed", "7") != plain
    assert train(*BESIDE) == plain, "beside"


def test_lora_begins_alike(base, tmp_path):
    words = ["--model_name_or_path", base, "--max_seq_length", "32", "--per_device_train_batch_size", "8", "--use_cpu"]
    words += ["--max_steps", "2", "--learning_rate", "1e-3", "--lora_rank", "2"]
    for name in "ab":
        torch.rand(1)  # what was drawn before does not matter
        trainer_module("v1.1").main([*words, "--output_dir", str(tmp_path / name)])
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab")
    assert one == two


def timeless(file):
    """A file's text; of JSON, without what a clock decided."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".json":
        return text
    lines = json.dumps(json.loads(text), indent=0, ensure_ascii=False).splitlines()
    return [line for line in lines if not re.match(r'"\w*(time|seconds|_ms|per_second|command|wall)\w*":', line)]


def test_two_evaluations_write_the_same_files_apart_from_times(base, tmp_path):
    found = []
    for name in ("one", "two"):
        folder, index = tmp_path / name, str(tmp_path / f"index-{name}")
        words = ["--first_stage", "bm25", f"dense:{base}", "--reranker", "none", "demo", "--depth", "5"]
        words += ["--tasks", "demo", "--split", "dev", "--index_uri", index]
        evaluate.main([*words, "--output_dir", str(folder)])
        files = [file for file in folder.glob("*/*.json*") if file.name not in ("pipeline.json", "run.json")]
        found.append({str(file.relative_to(folder)): timeless(file) for file in files})
        found[-1] = {file: str(text).replace(index, "INDEX") for file, text in found[-1].items()}
    assert len(found[0]) == 8 and found[0] == found[1]
