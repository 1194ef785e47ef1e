"""Model folders: what we save is what sentence-transformers loads, and the other way round."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from one_step import tiny_encoder
from test_reranker import tiny_reranker
from toy import needs_bfloat16

from koir.encoder import load_encoder
from koir.errors import ModelError
from koir.kernels.inference import Inference, same_layers
from koir.loading import not_loaded
from koir.manifest import DEMO, ROOT
from koir.reranker import load_reranker
from koir.tokens import ROWS, Plan, chunked, expanded, pad, plan_chunks, shortened, some_of

TEXTS = ["연차는 며칠인가요?", "김치", "확정일자를 받으면 우선변제권이 생긴다. " * 30, "", "😀 NFC 한글"]


@pytest.fixture
def folder(tmp_path):
    tiny_encoder().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("training", [pytest.param(False, marks=needs_bfloat16), True])
def test_bf16_moves_cosines_little_and_leaves_float32_as_it_was(training, any_bfloat16):
    encoder = tiny_encoder().train(training)
    exact, half = encoder.encode(TEXTS, "query"), encoder.encode(TEXTS, "query", bf16=True)
    assert half.dtype == np.float32 and np.abs(np.linalg.norm(half, axis=1) - 1).max() < 1e-5
    assert 0 < np.abs(half @ half.T - exact @ exact.T).max() < 1e-2
    assert np.array_equal(encoder.encode(TEXTS, "query"), exact) and encoder.training is training


def test_loading_and_saving_a_model_here_says_nothing(tmp_path, monkeypatch):
    code = "from koir.encoder import load_encoder as load; load('demo').save('model'); load('model')"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_round_trip_gives_the_same_vectors(folder):
    assert np.array_equal(load_encoder(str(folder)).encode(TEXTS, "query"), tiny_encoder().encode(TEXTS, "query"))


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_the_rest_of_a_model_folder_may_read_its_weights(tmp_path, mask):
    before = os.umask(mask)
    try:
        tiny_encoder().save(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir() if file.is_file()}
    assert modes == {0o666 & ~mask}


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_sentence_transformers_gives_the_same_vectors(tmp_path, pooling):
    from sentence_transformers import SentenceTransformer

    encoder = tiny_encoder()
    encoder.pooling = pooling
    encoder.save(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == 128
    for kind, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        ours = load_encoder(str(tmp_path / "model")).encode(TEXTS, kind)
        assert np.abs(ours - encode(TEXTS)).max() < 1e-5
    assert np.abs(np.linalg.norm(ours, axis=1) - 1).max() < 1e-5


def test_the_folder_is_in_the_long_standing_form(folder):
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
    assert [m["type"] for m in modules] == kinds
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert tokenizer in ("PreTrainedTokenizerFast", "XLMRobertaTokenizer")  # known to transformers 4 and 5
    prompts = json.loads((folder / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"query": "query: ", "document": "passage: "}
    names = {file.suffix for file in folder.rglob("*") if file.is_file()}
    assert not names & {".bin", ".pt", ".pkl"} and (folder / "model.safetensors").exists()


def test_prompts_and_length_are_read_from_the_folder(tmp_path):
    encoder = tiny_encoder()
    encoder.prompts, encoder.max_seq_length = {"query": "질문: ", "document": "문서: "}, 16
    encoder.save(tmp_path / "model")
    loaded = load_encoder(str(tmp_path / "model"))
    assert (loaded.prompts, loaded.max_seq_length, loaded.pooling) == (encoder.prompts, 16, "mean")
    changed = load_encoder(str(tmp_path / "model"), prompts={"query": "", "document": None}, max_seq_length=8)
    assert changed.prompts == {"query": "", "document": "문서: "} and changed.max_seq_length == 8
    assert not np.allclose(loaded.encode(TEXTS[:1], "query"), changed.encode(TEXTS[:1], "query"))


def test_chunk_budget_does_not_change_vectors():
    encoder = tiny_encoder()
    whole, cut = (encoder.encode(TEXTS, "document", chunk_tokens) for chunk_tokens in (10**6, 40))
    assert np.abs(whole - cut).max() < 1e-6


def test_the_forward_pass_without_gradients_is_the_models_own_also_after_its_weights_changed():
    """In place, as an optimizer or a loaded checkpoint changes them; the second text is padded."""
    torch.manual_seed(0)
    model, chunk = tiny_encoder().eval().transformer, pad([[0, 5, 6, 7, 8, 9, 2], [0, 7, 2]], 1)
    inference, seen = Inference(model), []
    with torch.no_grad():
        for _ in "12":
            wanted, found = model(**chunk).last_hidden_state, inference(chunk)
            real = chunk["attention_mask"].bool()
            torch.testing.assert_close(found[real], wanted[real], rtol=1e-4, atol=1e-5)
            seen.append(wanted[real])
            for parameter in model.encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert (seen[0] - seen[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "other", [{"hidden_act": "relu"}, {"is_decoder": True}, {"position_embedding_type": "relative_key"}], ids=str
)
def test_layers_that_compute_otherwise_keep_their_own_forward_pass(other):
    model = tiny_encoder().transformer
    assert same_layers(model)
    model.config.update(other)
    assert not same_layers(model)


def test_encoding_leaves_training_mode_as_it_was():
    encoder = tiny_encoder(dropout=0.5).train()
    assert np.array_equal(encoder.encode(TEXTS, "query"), encoder.encode(TEXTS, "query")) and encoder.training


def test_dropout_flags_reach_the_model(folder):
    encoder = load_encoder(str(folder), dropout=0.25, attention_dropout=0.5)
    layer = encoder.transformer.encoder.layer[0]
    assert (layer.output.dropout.p, encoder.transformer.config.attention_probs_dropout_prob) == (0.25, 0.5)
    with pytest.raises(ModelError, match="--dropout"):
        load_encoder(str(folder), dropout=1.5)


def test_demo_is_what_ships_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path))
    built = [load_encoder("demo") for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(built[0].parameters(), built[1].parameters(), strict=True))
    assert list(tmp_path.iterdir()) == []


def other(architecture, folder, **settings):
    """A tiny model of another architecture, with the demo's tokenizer."""
    from transformers import AutoConfig, AutoModel

    tiny = {"vocab_size": 15360, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1}
    tiny |= {"intermediate_size": 64, "max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 16}
    config = AutoConfig.for_model(architecture, **tiny | settings)
    AutoModel.from_config(config).save_pretrained(folder)
    tiny_encoder().tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_other_architectures_train_and_round_trip(tmp_path, architecture):
    other(architecture, tmp_path)
    encoder = load_encoder(str(tmp_path), max_seq_length=32)
    encoder(
        [{"input_ids": torch.tensor([[0, 9, 2]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}]
    ).sum().backward()
    assert all(p.grad is not None for n, p in encoder.named_parameters() if p.requires_grad)
    encoder.save(tmp_path / "saved")
    assert np.allclose(load_encoder(str(tmp_path / "saved")).encode(TEXTS, "query"), encoder.encode(TEXTS, "query"))


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "max_position_embeddings", "num_hidden_layers", "num_labels"]
)
def test_a_configuration_larger_than_the_weights_is_refused_before_it_takes_memory(folder, key):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: 10**9}))
    said = r"model/config\.json: found (\w+ [0-9,]+|\S+ of \[[0-9, ]+\]); expected (at most|\[)"
    with pytest.raises(ModelError, match=said):
        load_encoder(str(folder))


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "qwen3"])
def test_fewer_layers_of_other_architectures_round_trip(tmp_path, architecture):
    other(architecture, tmp_path / "whole", num_hidden_layers=3)
    encoder = load_encoder(str(tmp_path / "whole"), max_seq_length=32, num_hidden_layers=2)
    encoder.save(tmp_path / "saved")
    assert np.allclose(load_encoder(str(tmp_path / "saved")).encode(TEXTS, "query"), encoder.encode(TEXTS, "query"))


@pytest.mark.parametrize("architecture", ["camembert", "mpnet"])
def test_positions_that_begin_after_padding_are_not_counted(tmp_path, architecture):
    other(architecture, tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.max_seq_length == 62
    assert np.isfinite(encoder.encode([" ".join(TEXTS) * 9], "query")).all()


def test_an_encoder_decoder_and_a_tokenizer_without_padding_are_refused(tmp_path, folder):
    other("t5", tmp_path / "t5", d_kv=16, d_ff=64, d_model=32, num_layers=2, num_heads=2)
    with pytest.raises(ModelError, match="found a reranker .XLMRobertaForSequenceClassification, one score.; expected"):
        load_encoder(str(DEMO / "reranker"))
    with pytest.raises(ModelError, match="found an encoder-decoder"):
        load_encoder(str(tmp_path / "t5"))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"pad_token": None}))
    with pytest.raises(ModelError, match="without a padding token"):
        load_encoder(str(folder))


def test_a_guide_without_prompts_of_its_own_gets_the_runs(folder):
    config = folder / "config_sentence_transformers.json"
    config.write_text("{}")
    none = {"query": "", "document": ""}
    assert load_encoder(str(folder), default_prompts=none).prompts == none
    config.write_text(json.dumps({"prompts": {"query": "질의: "}}))
    assert load_encoder(str(folder), default_prompts=none).prompts == {"query": "질의: ", "document": ""}


def test_how_texts_were_cut_last_is_not_saved(tmp_path, folder):
    """Else a run that was resumed with nothing left to read would end in another tokenizer.json."""
    encoder = load_encoder(str(folder))
    encoder.save(tmp_path / "fresh")
    encoder.tokenizer(["연차 휴가는 며칠인가요?", "김치"], truncation=True, max_length=4, padding=True)
    encoder.save(tmp_path / "used")
    fresh, used = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("fresh", "used"))
    assert fresh == used and json.loads(used)["truncation"] is json.loads(used)["padding"] is None


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path, folder):
    with pytest.raises(ModelError, match="no such folder"):
        load_encoder(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="reachable hub, or a local folder"):
        load_encoder("koir-tests/no-such-model")
    with pytest.raises(ModelError, match="128 positions"):
        load_encoder(str(folder), max_seq_length=4096)
    (tmp_path / "pickle").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "pickle" / name).write_bytes((folder / name).read_bytes())
    torch.save({}, tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_encoder(str(tmp_path / "pickle"))


def test_a_dense_head_or_another_pooling_is_refused(folder):
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    pooling |= {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelError, match="pooling max; expected one of mean, cls, lasttoken; --pooling overrides"):
        load_encoder(str(folder))
    assert load_encoder(str(folder), pooling="cls").pooling == "cls"
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="Dense"):
        load_encoder(str(folder))


@pytest.mark.parametrize("load", [load_encoder, load_reranker])
def test_a_model_without_its_tokenizers_files_is_refused(folder, load, tmp_path):
    """transformers makes a tokenizer of special tokens alone of it, to which all words are one."""
    model = folder if load is load_encoder else tmp_path / "reranker"
    if load is load_reranker:
        tiny_reranker(model)
    for file in (*model.glob("tokenizer*"), *model.glob("special*")):
        file.unlink()
    with pytest.raises(ModelError, match="a tokenizer that knows . special tokens and no words"):
        load(str(model))


def test_what_is_wrong_with_a_hub_model_that_is_there_is_not_laid_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("koir.loading.try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    said = str(not_loaded("klue/some-model", OSError("no file named model.safetensors\nfound in it")))
    assert said.startswith("klue/some-model: found no file named model.safetensors found in it; expected a transf")
    said = str(not_loaded("a/b", ValueError("Please pass the argument `trust_remote_code=True` to allow")))
    assert said == "a/b: found a model with code of its own; expected --trust_remote_code, where that code is trusted"
    monkeypatch.setattr("koir.loading.try_to_load_from_cache", lambda *_: None)
    assert "no answer from the hub (OSError)" in str(not_loaded("klue/some-model", OSError("x")))


def test_chunks_keep_to_their_budget_and_to_few_shapes():
    lengths = [length for length in range(1, 510) for _ in range(3)]
    chunks, inverse = chunked([[5] * length for length in lengths], 1, 1024, 509)
    shapes = [tuple(chunk["input_ids"].shape) for chunk in chunks]
    assert all(rows * width <= 1024 and rows * width % ROWS == 0 for rows, width in shapes[:-1] if width < 509)
    assert {width for _, width in shapes if width >= 256} == {*range(256, 509, 16), 509}
    assert sum(rows * width for rows, width in shapes) < 1.04 * sum(lengths)
    found = torch.cat([chunk["attention_mask"].sum(1) for chunk in chunks])[inverse]
    assert found.tolist() == lengths


def test_a_chunk_holds_few_bytes_and_says_the_same():
    (chunk,), _ = chunked([[0, 15_000, 250_001, 2], [0, 7, 2]], 1, 64, 8)
    assert sum(tensor.nbytes for tensor in chunk.values()) == 5 * chunk["input_ids"].numel()
    same = pad([[0, 15_000, 250_001, 2], [0, 7, 2]], 1)
    assert all(torch.equal(tensor, same[name]) for name, tensor in expanded(chunk).items())
    assert {tensor.dtype for tensor in expanded(chunk).values()} == {torch.int64}


def test_a_text_beyond_the_budget_gets_a_chunk_of_its_own():
    plan = plan_chunks([3, 40, 3], 16)
    assert plan.chunks == [[1], [0, 2]] and plan.width == [40, 3]
    assert plan_chunks([3, 0], 3) == Plan([[0], [1]], [3, 0])  # an empty text costs nothing
    assert Plan([[2, 0], [1]], [4, 3]).inverse().tolist() == [1, 2, 0]


def test_widths_are_rounded_up_to_what_is_read_and_rows_fill_multiples():
    assert plan_chunks([33, 5], 38).width == [33, 5] and plan_chunks([33, 5], 38, 40).width == [34, 5]
    assert chunked([[5] * 33], 1, 64, 40)[0][0]["input_ids"].shape == (1, 34)
    assert plan_chunks([4] * 6, 20).chunks == [[0, 1, 2, 3], [4, 5]]  # 16 tokens, not 20
    assert plan_chunks([8] * 6, 40).chunks == [[0, 1, 2, 3, 4], [5]]


def test_padding_stands_on_the_right():
    for sequences in ([[5, 6], [7]], [np.array([5, 6]), np.array([7])]):
        padded = pad(sequences, 9, 3)
        assert padded["input_ids"].tolist() == [[5, 6, 9], [7, 9, 9]]
        assert padded["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
        assert pad(sequences, 9, 1)["input_ids"].tolist() == [[5, 6], [7, 9]]


def test_a_text_is_shortened_to_whole_tokens_and_left_alone_where_it_has_no_more():
    text, offsets = " 가나 다라 마 ", [(1, 3), (4, 6), (7, 8)]
    assert [shortened(text, offsets, 2, left) for left in (False, True)] == [" 가나 다라", "다라 마 "]
    assert shortened(text, offsets, 3, False) == shortened(text, offsets, 3, True) == text


def test_no_more_rows_are_looked_at_than_is_said():
    assert [len(some_of(range(rows))) for rows in (0, 999, 1000, 1001, 2500)] == [0, 999, 1000, 501, 834]
