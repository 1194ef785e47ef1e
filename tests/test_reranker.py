"""Cross-encoders: the same scores as CrossEncoder's and the transformer's own, however they are batched and saved."""

import itertools
import json

import numpy as np
import pytest
import torch
from one_step import tiny_encoder
from toy import HAS_BFLOAT16, needs_bfloat16
from transformers import AutoConfig, AutoModelForSequenceClassification

from koir.errors import ModelError
from koir.kernels import inference
from koir.reranker import load_reranker
from koir.tokens import tokenise_pairs

PAIRS = [
    ("연차는 며칠인가요?", "1년간 80퍼센트 이상 출근한 근로자에게 15일의 유급휴가를 준다."),
    ("김치", "유산균이 젖산을 만든다. " * 40),
    ("", "빈 질문"),
    ("확정일자를 받으면 " * 40, "우선변제권이 생긴다. " * 40),
    (" 앞뒤 공백 ", " \n문서 😀 한글\n "),
    *[("전세 보증금", "돌려받지 못하면 임차권등기명령을 신청한다. " * n) for n in range(1, 9)],
]
KINDS = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "modernbert"]


def tiny_reranker(folder, kind="xlm-roberta", length=128, **settings):
    """2 layers x 32 over the demo's tokenizer, one label, saved to a folder and loaded from it."""
    sizes = {"vocab_size": 15360, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {"num_labels": 1, "pad_token_id": 1, **settings}
    config = AutoConfig.for_model(kind, intermediate_size=64, max_position_embeddings=130, **sizes, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)  # so that scores differ clearly
    model.save_pretrained(folder)
    tokenizer = tiny_encoder().tokenizer
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    return load_reranker(str(folder))


def test_token_types_of_the_tokenizer_alone_are_left_out(tmp_path):
    tiny_reranker(tmp_path, "roberta", type_vocab_size=1)
    file = tmp_path / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_input_names": names}))
    pairs = [("연차는", "며칠인가요"), ("전세", "보증금")]
    assert np.isfinite(load_reranker(str(tmp_path)).score(pairs)).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer_config.json", {"model_max_length": "many"}), ("sentence_bert_config.json", {"max_seq_length": "many"}),
     ("sentence_bert_config.json", ["many"])],
)  # fmt: skip
def test_a_length_that_is_no_number_is_one_line(name, content, tmp_path):
    tiny_reranker(tmp_path)
    file = tmp_path / name
    before = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(before | content if isinstance(content, dict) else content))
    with pytest.raises(ModelError):
        load_reranker(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_those_of_cross_encoder(tmp_path, kind):
    from sentence_transformers import CrossEncoder

    reranker = tiny_reranker(tmp_path / "theirs", kind)
    reranker.save(tmp_path / "ours")
    theirs = CrossEncoder(str(tmp_path / "ours"), device="cpu")
    assert theirs.max_seq_length == reranker.max_seq_length == 128
    expected = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
    found = reranker.score(PAIRS)
    assert found.dtype == np.float32 and np.ptp(expected) > 0.1
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(load_reranker(str(tmp_path / "ours")).score(PAIRS) - expected).max() < 1e-5
    shown = theirs.predict(PAIRS)
    assert np.allclose(shown, 1 / (1 + np.exp(-found)), atol=1e-5)  # sigmoid is what users of predict see


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_transformers_own_logits(tmp_path, kind):
    reranker = tiny_reranker(tmp_path, kind)
    chunks, inverse, tokens = reranker.chunks(PAIRS, 300)
    assert tokens == sum(int(chunk["attention_mask"].sum()) for chunk in chunks) and len(chunks) > 2
    with torch.no_grad():
        own = reranker.eval()(chunks)[inverse].numpy()
    for chunk_tokens in (1, 300, 10**6):
        assert np.abs(reranker.score(PAIRS, chunk_tokens) - own).max() < 1e-5


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=needs_bfloat16) for kind in KINDS[:-1]), KINDS[-1]])
def test_bfloat16_moves_scores_a_little(tmp_path, kind, any_bfloat16):
    reranker = tiny_reranker(tmp_path, kind)
    full, half = reranker.score(PAIRS), reranker.score(PAIRS, bf16=True)
    assert 0 < np.abs(full - half).max() < 0.03 * np.ptp(full)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_copy_of_the_weights_scores_the_same(tmp_path, kind, bf16):
    reranker = tiny_reranker(tmp_path, kind)
    before = reranker.score(PAIRS, bf16=bf16)
    reranker.eval().keep_inference_alone(bf16)
    assert np.allclose(reranker.score(PAIRS, bf16=bf16), before, atol=1e-6)
    own = [part for part in reranker.modules() if isinstance(part, torch.nn.Linear) and len(part.weight)]
    if kind == "modernbert":
        assert all(part.weight.dtype == (torch.bfloat16 if bf16 and HAS_BFLOAT16 else torch.float32) for part in own)
    else:
        assert len(own) <= 3  # the head and ELECTRA's projection, which are not laid out


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("longest", [64, 63])
def test_long_pairs_are_cut_as_the_tokenizer_cuts_them(monkeypatch, longest, side):
    tokenizer = tiny_encoder().tokenizer  # all tests share it
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    texts = [f"{text} " * n for text in ("확정일자를 받으면", "우선변제권이") for n in (1, 10, 11, 40)]
    texts += ["띄어쓰지않은글" * 30, "띄어쓰지않은글" * 31]
    queries, documents = zip(*itertools.product(texts, texts), strict=True)
    ours = tokenise_pairs(tokenizer, queries, documents, longest)
    theirs = tokenizer(list(queries), list(documents), truncation=True, max_length=longest)
    assert ours["input_ids"] == theirs["input_ids"]
    assert [bool(e.overflowing) for e in ours.encodings] == [bool(e.overflowing) for e in theirs.encodings]


def test_what_is_cut_off_long_pairs_costs_no_product_of_their_lengths():
    coded = tokenise_pairs(tiny_encoder().tokenizer, ["가나 다라 " * 2000], ["마바사 " * 2000], 64)
    assert len(coded.encodings[0].overflowing) < 20


def test_products_meet_few_shapes():
    met = []
    for rows in range(1, 2049):
        x = torch.ones(1, rows, 1)
        found = inference._few_shapes(x, lambda filled: met.append(len(filled)) or 2 * filled)
        assert found.shape == x.shape and (found == 2).all() and met[-1] <= max(16, 1.125 * rows + 16)
    assert len(set(met)) <= 40


def test_changed_weights_change_scores(tmp_path):
    reranker = tiny_reranker(tmp_path)
    before = reranker.score(PAIRS)
    with torch.no_grad():
        reranker.transformer.base_model.encoder.layer[1].attention.self.key.weight.mul_(1.5)
    after = reranker.score(PAIRS)
    chunks, inverse, _ = reranker.chunks(PAIRS, 10**6)
    with torch.no_grad():
        assert np.abs(after - reranker.eval()(chunks)[inverse].numpy()).max() < 1e-5
    assert np.abs(after - before).max() > 1e-3


def test_scoring_leaves_training_mode_as_it_was(tmp_path):
    reranker = tiny_reranker(tmp_path).train()
    assert np.array_equal(reranker.score(PAIRS), reranker.score(PAIRS)) and reranker.training
    assert reranker.score([]).shape == (0,)


def test_an_encoder_is_a_start_but_no_reranker(tmp_path):
    encoder = tiny_encoder()
    encoder.save(tmp_path / "encoder")
    with pytest.raises(ModelError, match="without a scoring head.*finetune.sh"):
        load_reranker(str(tmp_path / "encoder"))
    start, again = (load_reranker(str(tmp_path / "encoder"), new_head=True) for _ in range(2))
    assert start.new_head and start.max_seq_length == encoder.max_seq_length
    assert np.array_equal(start.score(PAIRS), again.score(PAIRS))  # the head comes from a fixed seed
    ours, theirs = start.transformer.base_model.encoder.state_dict(), encoder.transformer.encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    start.save(tmp_path / "reranker")
    assert not load_reranker(str(tmp_path / "reranker")).new_head


def test_the_folder_holds_no_pickle_and_says_how_scores_are_shown(tmp_path):
    tiny_reranker(tmp_path / "a", length=64).save(tmp_path / "b")
    assert {file.suffix for file in (tmp_path / "b").iterdir()} == {".json", ".safetensors"}
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == ["XLMRobertaForSequenceClassification"] and len(config["id2label"]) == 1
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_what_gives_no_single_score_is_refused(tmp_path):
    with pytest.raises(ModelError, match="3 labels"):
        tiny_reranker(tmp_path / "three", num_labels=3)
    tiny_reranker(tmp_path / "one")
    with pytest.raises(ModelError, match="128 positions"):
        load_reranker(str(tmp_path / "one"), max_seq_length=4096)
    config = json.loads((tmp_path / "one" / "config.json").read_text()) | {"architectures": ["Qwen3ForCausalLM"]}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="Qwen3ForCausalLM"):
        load_reranker(str(tmp_path / "one"))
    with pytest.raises(ModelError, match="reachable hub"):
        load_reranker("koir-tests/no-such-model")
