"""LoRA under the gradient cache: equal gradients, merged model folders, resumable checkpoints."""

import shutil

import pytest
import torch
from one_step import gradients, tiny_encoder, trainer_class
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from koir import lora
from koir.arguments import CacheArguments
from koir.encoder import load_encoder
from koir.errors import ModelError, RunError
from koir.runs import command
from koir.runs.encoders import ENCODER


def assert_all_equal(found, expected):
    assert found.keys() == expected.keys() and len(found) == 24  # two layers, six linear layers each, two matrices
    everything = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert ".lora_" in name
        assert (found[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3 * everything), name
    assert everything > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_cached_equals_plain(rows, tmp_path, checkpointing):
    same = {"rows": rows, "dropout": 0.2, "chunk_tokens": 40, "lora_rank": 4, "checkpointing": checkpointing}
    plain = gradients("v1", folder=tmp_path / "plain", **same)
    assert_all_equal(gradients("v1.1", folder=tmp_path / "cached", keep=60, **same), plain)


def adapted(**settings):
    encoder = tiny_encoder()
    lora.add_adapters(encoder, **{"rank": 4, "alpha": 8} | settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in filter(lambda p: p.requires_grad, encoder.parameters()):
            torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def test_a_saved_model_is_merged(tmp_path):
    encoder = adapted()
    encoder.save(tmp_path / "model", lora.merged(encoder))
    texts = ["연차는 며칠인가요", "육아휴직 급여"]
    expected = encoder.encode(texts, "query")
    assert abs(expected - tiny_encoder().encode(texts, "query")).max() > 1e-2
    assert abs(load_encoder(str(tmp_path / "model")).encode(texts, "query") - expected).max() < 1e-6
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode_query(texts)
    assert abs(theirs - expected).max() < 1e-6


def test_targets_name_linear_layers():
    encoder = adapted(targets=["query", "value"])
    assert sum(p.requires_grad for p in encoder.parameters()) == 8
    with pytest.raises(ModelError, match="--lora_targets: found quer, .* did you mean query"):
        adapted(targets=["quer"])


def test_other_flags_than_the_checkpoints_are_refused(tmp_path):
    lora.save_adapters(adapted(), tmp_path)
    lora.load_adapters(adapted(), tmp_path)
    with pytest.raises(RunError, match="other LoRA ranks or layers"):
        lora.load_adapters(adapted(rank=2), tmp_path)
    with pytest.raises(RunError, match="a run without --lora_rank"):
        lora.load_adapters(adapted(), tmp_path / "elsewhere")


def test_a_run_with_every_option_is_resumed_to_the_same_weights(tmp_path, teacher_rows):
    tiny_encoder(dropout=0.1).save(tmp_path / "base")
    flags = ["--model_name_or_path", tmp_path / "base", "--train_data", teacher_rows, "--max_seq_length", 32]
    flags += ["--per_device_train_batch_size", 4, "--max_steps", 6, "--save_steps", 2, "--learning_rate", "1e-3"]
    flags += ["--batch_by", "source", "--source_alpha", 0.5, "--symmetric_weight", 0.5]
    flags += ["--matryoshka_dimensions", 32, 8, "--distillation", "margin_mse", "--save_total_limit", 9]
    flags += ["--guide_model_name_or_path", "demo", "--false_negative_margin", 0.1, "--margin_type", "relative"]

    def train(folder, *more, rank=("--lora_rank", 2)):
        words = [*flags, *rank, "--output_dir", folder, *more]
        command.run(trainer_class("v1.1"), "v1.1", "", ENCODER, [str(word) for word in words], CacheArguments)
        return load_file(folder / "model" / "model.safetensors")

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = train(whole)
    card = (whole / "model" / "README.md").read_text(encoding="utf-8")
    assert "- guide_model_name_or_path demo\n" in card and "- distillation margin_mse\n" in card
    assert not (whole / "model" / lora.FILE).exists() and not any("lora" in name for name in expected)
    shutil.copytree(whole, cut)
    (cut / "run.json").unlink()
    for late in ("checkpoint-6", "checkpoint-4"):
        shutil.rmtree(cut / "checkpoints" / late)
    with pytest.raises(RunError, match="found --lora_rank none; expected --lora_rank 2, as the run began"):
        train(cut, "--resume_from_checkpoint", "last", rank=())
    with pytest.raises(RunError, match="--lora_alpha 256.0.*; expected --lora_alpha none"):
        train(cut, "--resume_from_checkpoint", "last", "--lora_alpha", 256)
    found = train(cut, "--resume_from_checkpoint", "last")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
