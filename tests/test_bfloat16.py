"""A processor without bfloat16: float32 takes its place everywhere, and where a flag asked for it a line says so."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from one_step import tiny_encoder
from test_joint import Fake
from test_reranker import KINDS, PAIRS, tiny_reranker

import evaluate
from koir.arguments import TrainingArguments
from koir.evaluation.joint import sampled
from koir.evaluation.tasks import load_task
from koir.kernels.bfloat16 import or_float32
from koir.reranker_training import RerankerTrainer
from koir.serving.loading import Loader, ServedArguments
from koir.training import EmbeddingTrainer

CPU = torch.device("cpu")
SAYS = "found neither AVX512-BF16 nor AMX; float32 is used"


@pytest.fixture
def avx2(monkeypatch):
    """A chip with AVX2 alone, as far as this code can tell."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settled", [False, True])
def test_scores_are_those_of_float32(avx2, tmp_path, kind, settled):
    reranker = tiny_reranker(tmp_path, kind)
    exact = reranker.score(PAIRS)
    if settled:
        reranker.eval().keep_inference_alone(bf16=True)
    assert np.array_equal(reranker.score(PAIRS, bf16=True), exact)


@pytest.mark.parametrize("way", ["as it is", "training", "settled"])
def test_vectors_are_those_of_float32(avx2, way):
    encoder = tiny_encoder().train(way == "training")
    texts = [text for pair in PAIRS for text in pair]
    exact = encoder.encode(texts, "document")
    if way == "settled":
        encoder.eval().keep_inference_alone(bf16=True)
    assert np.array_equal(encoder.encode(texts, "document", bf16=True), exact)


def test_training_says_so_once_a_run(avx2, tmp_path, capsys, monkeypatch):
    asked = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": True}
    assert TrainingArguments(**asked).bf16 is False
    assert f"--bf16: {SAYS}" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert TrainingArguments(**asked).bf16 is False and not capsys.readouterr().err


def test_evaluation_says_so_and_finds_what_float32_left(avx2, tmp_path, capsys):
    words = ["--first_stage", "bm25", "--reranker", "demo", "--depth", "5", "--output_dir", str(tmp_path)]
    written = []
    for flags in ([], ["--bf16"]):
        evaluate.main([*words, "--index_uri", str(tmp_path / "index"), *flags])
        assert (f"--bf16: {SAYS}" in capsys.readouterr().err) is bool(flags)
        written.append(json.loads((tmp_path / "bm25+demo@5" / "demo.json").read_text(encoding="utf-8"))["koir"])
    assert written[0]["latency"] == written[1]["latency"]  # the first run's: nothing was scored again


@pytest.mark.parametrize(("dtype", "said"), [("auto", False), ("bfloat16", True), ("float32", False)])
def test_serving_says_so_where_it_was_asked_for(avx2, capsys, dtype, said):
    assert Loader(ServedArguments(None, None, dtype=dtype)).bf16 is False
    assert (f"--dtype bfloat16: {SAYS}" in capsys.readouterr().err) is said


@pytest.mark.parametrize("bf16", [False, True])
def test_dev_scores_are_in_the_precision_of_training(bf16, monkeypatch):
    asked = []
    encoder, task = tiny_encoder(), sampled(load_task("demo", "dev"), 3)
    monkeypatch.setattr(encoder, "infer", lambda chunk, half: asked.append(half) or encoder.embed(chunk))
    monkeypatch.setattr(encoder, "_autocast", encoder.infer)
    trainer = SimpleNamespace(model=encoder, dev_tasks=[task], args=SimpleNamespace(bf16=bf16, deepspeed=None))
    trainer.accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    trainer.share = lambda items, compute: compute(items)
    assert 0 <= EmbeddingTrainer.dev_scores(trainer)["demo/ndcg_at_10"] <= 1
    assert set(asked) == {bf16}
    reranker, asked = Fake(lambda *_: 0.0), []
    trainer.evaluation = SimpleNamespace(eval_depth=5, first_stage="bm25")
    trainer._candidates, trainer._first_stage, trainer.model = {}, {}, reranker
    RerankerTrainer.dev_scores(trainer)
    assert reranker.bf16 is bf16


def test_a_gpu_that_only_emulates_it_computes_in_float32(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not or_float32(True, torch.device("cuda"), "--bf16")
    assert "--bf16: found a GPU before Ampere (--fp16 is its own); float32" in capsys.readouterr().err


def test_a_chip_that_has_it_is_left_alone(capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert or_float32(True, CPU, "--bf16") and not or_float32(False, CPU, "--bf16")
    assert not capsys.readouterr().err
