"""--tuned_share: what is saved lies between the start and what training made of it."""

import pytest
import torch
from one_step import tiny_encoder, trainer_class, trainer_module
from test_reranker import tiny_reranker

from koir.arguments import CacheArguments
from koir.encoder import load_encoder
from koir.errors import FlagError
from koir.reranker import load_reranker
from koir.runs import command
from koir.runs.averaging import WeightArguments
from koir.runs.encoders import ENCODER


def encoder_run(words):
    return command.run(trainer_class("v1.1"), "v1.1", "", ENCODER, words, CacheArguments)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("encoder", []), ("encoder", ["--num_hidden_layers", "1"]), ("encoder", ["--lora_rank", "2"]), ("reranker", [])],
)
def test_a_share_of_the_tuned_weights_is_saved_beside_the_starts(kind, more, rows, tmp_path):
    """At a share of 1/4, each weight has gone a quarter of its way, LoRA's merged product too."""
    if kind == "encoder":
        tiny_encoder().save(tmp_path / "base")
        train, load = encoder_run, load_encoder
    else:
        tiny_reranker(tmp_path / "base")
        train, load = trainer_module("reranker").main, load_reranker
    start, saved = load(str(tmp_path / "base")).state_dict(), {}
    for share in ("1", "0.25"):
        flags = {"model_name_or_path": tmp_path / "base", "train_data": rows, "max_steps": 2, "learning_rate": 0.01,
                 "tuned_share": share, "output_dir": tmp_path / share}  # fmt: skip
        train([word for name, value in flags.items() for word in (f"--{name}", str(value))] + more)
        saved[share] = load(str(tmp_path / share)).state_dict()
    moved = [name for name, tuned in saved["1"].items() if (tuned - start[name]).abs().max() > 1e-3]
    assert len(moved) > 10 and saved["1"].keys() == saved["0.25"].keys()
    for name, tuned in saved["1"].items():
        assert torch.allclose(saved["0.25"][name], start[name] + (tuned - start[name]) / 4, atol=1e-6), name
    said = "- weights: 25% tuned, 75% the base's\n"
    assert said in (tmp_path / "0.25" / "model" / "README.md").read_text(encoding="utf-8")
    assert "- weights:" not in (tmp_path / "1" / "model" / "README.md").read_text(encoding="utf-8")
    assert "tuned_share: 0.25" in (tmp_path / "0.25" / "recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("share", [0, 1.5, -0.5])
def test_a_share_of_nothing_or_more_than_all_is_refused(share):
    with pytest.raises(FlagError, match="--tuned_share"):
        WeightArguments(tuned_share=share).check()
