"""The server: the same scores as sentence-transformers, each client's shapes, and answers to whatever is sent."""

import base64
import json
import logging
import threading
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from starlette.testclient import TestClient
from test_reranker import tiny_reranker

from koir.encoder import load_encoder
from koir.evaluation.pipeline import Pipeline
from koir.kernels.inference import Inference
from koir.manifest import DEMO
from koir.reranker import load_reranker
from koir.retrieval.score_maps import exp_normalize, sigmoid
from koir.retrieval.stages import in_memory
from koir.serving import app
from koir.serving.app import create_app
from koir.serving.door import DoorRules, read_keys
from koir.serving.loading import ServedArguments, load
from koir.serving.models import ServedEncoder, ServedReranker
from koir.serving.registry import Registry
from koir.serving.search import ServedPipeline

QUERY = "연차 휴가는 며칠인가요?"
SENTENCE = "1년간 80퍼센트 이상 출근한 근로자에게 15일의 유급휴가를 준다."
DOCUMENTS = [SENTENCE * n for n in (1, 3, 1, 12, 2)] + [
    "김치",
    "",
    "한라산은 제주도에 있다.",
    SENTENCE[:20],
    "가" * 3000,
]


def scatter(module, std=0.02):
    """Matrices drawn by a seed: the bundled base's layers add nothing before they are trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() == 2:
                weight.normal_(std=std, generator=generator)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny encoder and a tiny reranker whose scores are far apart."""
    there = tmp_path_factory.mktemp("models")
    encoder = load_encoder("demo", num_hidden_layers=1)
    scatter(encoder.transformer.encoder, std=0.05)
    encoder.save(there / "encoder")
    for name, scale in (("reranker", 30.0), ("other", -30.0)):
        reranker = load_reranker(str(DEMO / "base"), new_head=True, num_hidden_layers=1)
        scatter(reranker.transformer.roberta)
        with torch.no_grad():
            reranker.transformer.classifier.out_proj.weight.mul_(scale)
            reranker.transformer.classifier.out_proj.bias.sub_(float(reranker.score([(QUERY, SENTENCE)])[0]))
        reranker.save(there / name)
    return {name: str(there / name) for name in ("encoder", "reranker", "other")}


@pytest.fixture(scope="module")
def registry(folders):
    return load(ServedArguments(f"dense:{folders['encoder']}", folders["reranker"], dtype="float32"))


@pytest.fixture(scope="module")
def client(registry):
    with TestClient(create_app(registry, DoorRules(max_body=4 * 2**20)), raise_server_exceptions=False) as client:
        yield client


def rerank(client, path="/v1/rerank", **body):
    answer = client.post(path, json={"query": QUERY, "documents": DOCUMENTS} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_index(results, key="relevance_score"):
    return np.array([result[key] for result in sorted(results, key=lambda result: result["index"])])


def test_scores_are_those_of_cross_encoder(client, folders):
    ours = by_index(rerank(client)["results"])
    theirs = CrossEncoder(folders["reranker"], device="cpu").predict([(QUERY, text) for text in DOCUMENTS])
    assert np.ptp(theirs) > 0.02
    assert np.abs(ours - theirs).max() <= 1e-5


def test_the_encoder_that_others_are_compared_with_has_layers_that_count(folders):
    models = [load_encoder(name, num_hidden_layers=1) for name in (folders["encoder"], "demo")]
    ours, bare = (model.encode(DOCUMENTS, "document") for model in models)
    assert np.abs(ours - bare).max() > 0.1


def test_null_is_the_default_in_teis_shape(client):
    body = {"query": QUERY, "texts": DOCUMENTS}
    nothing = dict.fromkeys(["raw_scores", "return_text", "truncate", "truncation_direction"])
    assert client.post("/rerank", json=body | nothing).json() == client.post("/rerank", json=body).json()


def test_raw_scores_are_the_logits_that_sigmoid_shows(client):
    shown, raw = (by_index(rerank(client, raw_scores=raw)["results"]) for raw in (False, True))
    assert np.abs(sigmoid(raw) - shown).max() < 1e-6
    assert (by_index(rerank(client, use_activation=False)["results"]) == raw).all()


def test_score_map_decides_where_no_logits_are_asked_for(client, registry):
    raw = by_index(rerank(client, raw_scores=True)["results"])
    with TestClient(create_app(registry, score_map="exp_normalize")) as other:
        for path, texts, key in (("/v1/rerank", "documents", "relevance_score"), ("/rerank", "texts", "score")):
            answer = other.post(path, json={"query": QUERY, texts: DOCUMENTS}).json()
            shares = by_index(answer["results"] if path == "/v1/rerank" else answer, key)
            assert shares == pytest.approx(exp_normalize(raw)) and shares.sum() == pytest.approx(1)
        assert (by_index(rerank(other, raw_scores=True)["results"]) == raw).all()
        pairs = other.post("/score", json={"text_1": QUERY, "text_2": DOCUMENTS}).json()["data"]
    assert by_index(pairs, "score") == pytest.approx(sigmoid(raw))  # pairs of any queries: no list to add up to 1


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_a_score_does_not_depend_on_its_company(folders, dtype, tolerance):
    fillers = [f"{n}번 " + SENTENCE * (n % 5) + "한라산 " * n for n in range(40)]
    with TestClient(create_app(load(ServedArguments("dense:demo", folders["reranker"], dtype=dtype)))) as client:
        alone = np.array([rerank(client, documents=[text])["results"][0]["relevance_score"] for text in DOCUMENTS])
        for texts in (DOCUMENTS, DOCUMENTS + fillers, fillers[:7] + DOCUMENTS + fillers[7:]):
            results, first = rerank(client, documents=texts)["results"], texts.index(DOCUMENTS[0])
            ours = [hit["index"] - first for hit in results if 0 <= hit["index"] - first < len(DOCUMENTS)]
            together = by_index(results)[first : first + len(DOCUMENTS)]
            assert np.abs(together - alone).max() <= tolerance
            assert (np.diff(alone[ours]) <= 2 * tolerance).all()  # only what is that near may change places


def test_bfloat16_stays_within_a_hundredth(folders):
    registry = load(ServedArguments(f"dense:{folders['encoder']}", folders["reranker"], dtype="bfloat16"))
    with TestClient(create_app(registry)) as client:
        ours = by_index(rerank(client)["results"])
        vectors = client.post("/v1/embeddings", json={"input": DOCUMENTS}).json()["data"]
    theirs = CrossEncoder(folders["reranker"], device="cpu").predict([(QUERY, text) for text in DOCUMENTS])
    assert np.abs(ours - theirs).max() <= 1e-2
    right = SentenceTransformer(folders["encoder"], device="cpu").encode(DOCUMENTS)
    assert np.abs(np.array([row["embedding"] for row in vectors]) - right).max() <= 1e-2


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        (None, {}),
        ("query", {"input_type": "query"}),
        ("query", {"task": "retrieval.query"}),
        ("document", {"input_type": "search_document"}),
        ("document", {"prompt_name": "passage"}),
    ],
)
def test_vectors_are_those_of_sentence_transformer(client, folders, prompt, fields):
    model = SentenceTransformer(folders["encoder"], device="cpu")
    theirs = model.encode(DOCUMENTS, **({"prompt_name": prompt} if prompt else {}))
    answer = client.post("/v1/embeddings", json={"input": DOCUMENTS} | fields).json()
    ours = np.array([row["embedding"] for row in answer["data"]])
    assert np.abs(ours - theirs).max() <= 1e-5
    assert [row["index"] for row in answer["data"]] == list(range(len(DOCUMENTS)))


def test_base64_dimensions_and_token_ids(client, registry):
    encoder = registry.find("encoder", None).model
    send = lambda **body: client.post("/embeddings", json={"input": QUERY} | body).json()["data"][0]["embedding"]  # noqa: E731
    whole = np.array(send(), dtype=np.float32)
    assert (np.frombuffer(base64.b64decode(send(encoding_format="base64")), "<f4") == whole).all()
    assert send(encoding_format=None, dimensions=None) == whole.tolist()  # as LiteLLM sends what it was not told
    short = np.array(send(dimensions=16))
    assert short == pytest.approx(whole[:16] / np.linalg.norm(whole[:16]), abs=1e-6)
    ids = encoder.tokenizer(QUERY)["input_ids"]
    assert np.array(send(input=ids)) == pytest.approx(whole, abs=1e-6)
    assert np.array(send(input=[ids])) == pytest.approx(whole, abs=1e-6)


def test_more_texts_than_an_answer_may_hold_are_refused(client):
    answer = client.post("/v1/embeddings", json={"input": ["가"] * 8193})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "input: found 8,193 texts; expected at most 8,192 in one request"


def test_an_answer_has_what_every_client_reads(client):
    answer = rerank(client, model="whatever", top_n=3)
    assert set(answer) == {"id", "object", "created", "model", "results", "usage", "meta"}
    assert answer["model"] == "reranker" and answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    scores = [result["relevance_score"] for result in answer["results"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and 0 <= min(scores) <= max(scores) <= 1
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])  # no null document


def test_equal_scores_keep_the_order_of_the_request(client):
    assert [result["index"] for result in rerank(client, documents=["같다"] * 5)["results"]] == [0, 1, 2, 3, 4]


def test_documents_are_repeated_when_asked(client):
    for result in rerank(client, return_documents=True)["results"]:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    for result in rerank(client, "/infinity/rerank", return_documents=True)["results"]:
        assert result["document"] == DOCUMENTS[result["index"]]


def test_documents_may_be_objects_and_rank_fields_names_what_is_read(client):
    objects = [{"text": text, "title": "제목"} for text in DOCUMENTS]
    assert by_index(rerank(client, documents=objects)["results"]) == pytest.approx(by_index(rerank(client)["results"]))
    both = by_index(rerank(client, documents=objects, rank_fields=["title", "text"])["results"])
    joined = by_index(rerank(client, documents=[f"제목 {text}" for text in DOCUMENTS])["results"])
    assert both == pytest.approx(joined)


WALKTHROUGH = {
    "食べ物に関する話": ["猫が好き", "寿司を食べた", "電車が遅れた", "ラーメンは熱い", "海へ行く", "本を読む",
                  "雨が降る", "りんごを買う", "走るのが速い", "会議は三時だ"],
    "음식에 관한 이야기": ["고양이가 좋다", "초밥을 먹었다", "전철이 늦었다", "라면은 뜨겁다", "바다에 간다",
                   "책을 읽는다", "비가 온다", "사과를 산다", "달리기가 빠르다", "회의는 세 시다"],
}  # fmt: skip


@pytest.mark.parametrize("query", WALKTHROUGH)
def test_the_walk_through_of_localai_is_answered_in_its_shape(registry, query):
    body = {"model": "jina-reranker-v1-base-en", "query": query, "documents": WALKTHROUGH[query], "top_n": 3}
    with TestClient(create_app(registry, return_documents=True)) as client:  # as LocalAI: documents always
        answer = client.post("/v1/rerank", json=body).json()
    assert answer["model"] == "reranker" and set(answer["usage"]) == {"total_tokens", "prompt_tokens"}
    assert len(answer["results"]) == 3
    for result in answer["results"]:
        assert set(result) == {"index", "document", "relevance_score"}
        assert result["document"] == {"text": WALKTHROUGH[query][result["index"]]}


def test_tei_gets_a_bare_list(client):
    found = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, "return_text": True}).json()
    assert [set(item) for item in found] == [{"index", "score", "text"}] * len(DOCUMENTS)
    assert by_index(found, "score") == pytest.approx(by_index(rerank(client)["results"]))


def test_score_pairs_one_with_many_or_one_by_one(client):
    right = by_index(rerank(client)["results"])
    for path in ("/score", "/v1/score"):
        for body in ({"text_1": QUERY, "text_2": DOCUMENTS}, {"queries": [QUERY] * 10, "documents": DOCUMENTS}):
            assert by_index(client.post(path, json=body).json()["data"], "score") == pytest.approx(right)
    half = {"text_1": "a", "queries": "a", "documents": "b"}  # a side without its other is left out
    assert client.post("/score", json=half).status_code == 200
    for body in ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, {"text_1": "a"}, {"text_1": [], "text_2": []}, {}):
        assert client.post("/score", json=body).status_code == 422


@pytest.mark.parametrize(
    ("path", "top_n", "expected"),
    [("/rerank", 0, 10), ("/rerank", -1, 422), ("/rerank", 10**9, 10),
     ("/infinity/rerank", 0, 422), ("/infinity/rerank", -1, 422), ("/infinity/rerank", 10**9, 10),
     ("/v1/rerank", 0, 422), ("/v1/rerank", -1, 422), ("/v1/rerank", 10**9, 10), ("/v1/rerank", 10**30, 10),
     ("/v2/rerank", 0, 422), ("/v2/rerank", -1, 422), ("/v2/rerank", 10**9, 10), ("/v2/rerank", 4, 4),
     ("/v1/rerank", None, 10)],
)  # fmt: skip
def test_top_n_as_each_original_takes_it(client, path, top_n, expected):
    answer = client.post(path, json={"query": QUERY, "documents": DOCUMENTS, "top_n": top_n})
    assert (answer.status_code if expected == 422 else len(answer.json()["results"])) == expected


def test_one_document_may_come_without_its_list_as_vllm_takes_it(client):
    (result,) = rerank(client, "/rerank", documents=SENTENCE, return_documents=True)["results"]
    assert result["document"] == {"text": SENTENCE}
    assert client.post("/v1/rerank", json={"query": "q", "documents": "a"}).status_code == 422


def test_truncation_is_said(client):
    cut = {"documents": DOCUMENTS, "query": QUERY}
    assert "cut" in rerank(client)["meta"]["warnings"][0] and "9" in rerank(client)["meta"]["warnings"][0]
    answer = client.post("/v1/rerank", json=cut | {"max_tokens_per_doc": 20})
    assert answer.headers["x-truncated-texts"] == "4"
    assert client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, "truncate": False}).status_code == 422
    vectors = client.post("/v1/embeddings", json={"input": ["짧다", "길다 " * 900], "truncate_prompt_tokens": 64})
    assert vectors.json()["truncated"] == [1] and vectors.json()["usage"]["total_tokens"] < 80
    left, right = (rerank(client, documents=DOCUMENTS[3:4] * 2, truncate_prompt_tokens=40, truncation_side=side)
                   for side in ("left", "right"))  # fmt: skip
    assert left["results"] != right["results"]


QUERY_CUT = "the query was too long and was cut"
SECOND_CUT = "1 documents were too long and were cut, by index: 1"


@pytest.mark.parametrize(
    ("body", "warnings"),
    [
        ({"query": "휴가 " * 3000, "documents": ["짧다", "김치", "산"]}, [QUERY_CUT]),
        ({"query": "휴" * 70000, "documents": ["짧다"]}, [QUERY_CUT]),  # beyond what any tokens reach
        ({"query": QUERY * 20, "documents": ["김치"], "max_tokens_per_query": 9}, [QUERY_CUT]),
        ({"query": QUERY * 90, "documents": ["김치", SENTENCE * 90]}, [QUERY_CUT, SECOND_CUT]),
        ({"query": QUERY, "documents": ["김치", SENTENCE * 90]}, [SECOND_CUT]),
    ],
)
def test_a_cut_query_is_told_from_cut_documents(client, body, warnings):
    answer = client.post("/v1/rerank", json=body)
    assert answer.json()["meta"]["warnings"] == warnings
    assert int(answer.headers["x-truncated-texts"]) == len(warnings)


@pytest.mark.parametrize(
    ("query", "texts", "param"), [(QUERY, ["김치", SENTENCE * 90], "texts.1"), ("휴가 " * 900, ["김치"], "query")]
)
def test_a_refusal_to_cut_names_what_is_too_long(client, query, texts, param):
    answer = client.post("/rerank", json={"query": query, "texts": texts, "truncate": False})
    assert answer.status_code == 422 and answer.json()["error"]["param"] == param
    assert answer.json()["message"].startswith(f"{param}: found more tokens than fit")


ODD = {
    "no query": {"documents": ["a"]},
    "an empty query": {"query": "", "documents": ["a"]},
    "a query that is a number": {"query": 3, "documents": ["a"]},
    "no documents": {"query": "q", "documents": []},
    "documents that are a number": {"query": "q", "documents": 5},
    "a null document": {"query": "q", "documents": [None]},
    "a nested document": {"query": "q", "documents": [["a"]]},
    "an object without text": {"query": "q", "documents": [{"title": "a"}]},
    "half a surrogate pair": {"query": "q", "documents": ["\ud800"]},
    "half a surrogate pair in an object": {"query": "q", "documents": [{"t": "\udfff"}], "rank_fields": ["t"]},
    "a top_n that is a word": {"query": "q", "documents": ["a"], "top_n": "three"},
    "a list": ["q"],
    "a number": 5,
    "null": None,
    "tiny sequences": {"query": "q", "documents": ["a"], "truncate_prompt_tokens": 3},
}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/infinity/rerank"])
@pytest.mark.parametrize("what", ODD)
def test_a_mistake_is_said_in_the_shape_that_all_clients_read(client, path, what):
    answer = client.post(path, content=json.dumps(ODD[what]), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    body = answer.json()
    assert set(body["error"]) == {"message", "type", "code", "param"} and body["detail"] == body["error"]["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/rerank", {"query": "a", "documents": [1] * 3000}), ("/rerank", {"query": "a", "texts": [1] * 3000}),
     ("/v1/embeddings", {"input": [-1] * 3000}), ("/v1/embeddings", {"input": [[-1] * 300] * 300}),
     ("/score", {"text_1": "a", "text_2": [1] * 3000})],
)  # fmt: skip
def test_a_long_list_of_the_wrong_type_ends_at_its_first_element(client, path, body, monkeypatch):
    """An error for each would take minutes and gigabytes, in which nobody else is served."""
    counted, first = [], app.from_validation
    monkeypatch.setattr(app, "from_validation", lambda errors: counted.append(len(errors)) or first(errors))
    assert client.post(path, json=body).status_code == 422
    assert counted[0] < 10


def test_a_roberta_with_berts_tokenizer_is_served(tmp_path):
    tiny_reranker(tmp_path, "roberta", type_vocab_size=1)
    file = tmp_path / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_input_names": names}))
    with TestClient(create_app(load(ServedArguments("dense:demo", str(tmp_path), dtype="float32")))) as client:
        found = by_index(rerank(client, raw_scores=True)["results"])
    expected = load_reranker(str(tmp_path)).score([(QUERY, text) for text in DOCUMENTS])
    assert np.abs(found - expected).max() < 1e-4


def test_fields_of_objects_are_put_together_as_texts_are(client):
    apart = unicodedata.normalize("NFD", SENTENCE)
    found = rerank(client, documents=[{"body": SENTENCE}, {"body": apart}], rank_fields=["body"])["results"]
    assert found[0]["relevance_score"] == found[1]["relevance_score"]


def test_texts_come_back_as_they_were_sent(client):
    """macOS takes syllables apart; who looks the answer's text up among his own is to find it."""
    apart, query = unicodedata.normalize("NFD", SENTENCE), unicodedata.normalize("NFD", QUERY)
    sent = {"query": query, "return_documents": True, "documents": [apart, {"text": apart}, SENTENCE]}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/infinity/rerank"):
        found = rerank(client, path, **sent)["results"]
        texts = [hit["document"] if path.startswith("/inf") else hit["document"]["text"] for hit in found]
        assert texts == [apart, apart, SENTENCE] and len({hit["relevance_score"] for hit in found}) == 1
    both = [{"title": apart[:9], "text": apart}]
    (found,) = rerank(client, documents=both, rank_fields=["title", "text"], return_documents=True)["results"]
    assert found["document"] == {"text": f"{apart[:9]} {apart}"}
    texts = client.post("/rerank", json={"query": query, "texts": [apart, SENTENCE], "return_text": True}).json()
    assert [hit["text"] for hit in texts] == [apart, SENTENCE] and len({hit["score"] for hit in texts}) == 1


def test_a_model_is_found_by_its_name_and_probes_may_ask_for_heads(client):
    (first, *_) = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{first['id']}").json() == first
    assert client.get("/v1/models/nobody").status_code == 404
    for path in ("/health", "/ready", "/v1/models"):
        assert client.head(path).status_code == 200


def test_a_task_that_has_no_prompt_is_the_bare_text(client):
    asked = ({}, {"input_type": "classification"}, {"task": "text-matching"}, {"task": "query"})
    answers = [client.post("/v1/embeddings", json={"input": QUERY} | more).json() for more in asked]
    vectors = [answer["data"][0]["embedding"] for answer in answers]
    assert vectors[0] == vectors[1] == vectors[2] != vectors[3]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"query": NaN', b"[" * 50000, b"1" * 5000])
def test_what_is_no_json_gets_400(client, content):
    answer = client.post("/v1/rerank", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["detail"]


@pytest.mark.parametrize("text", ["a\x00b", "👩‍👩‍👧", "가", "\u200b", " ", "ﷺ" * 50, "x" * 2**20])
def test_odd_texts_are_scored(client, text):
    answer = rerank(client, documents=[text, "b"])
    assert sorted(result["index"] for result in answer["results"]) == [0, 1]
    assert np.isfinite(client.post("/v1/embeddings", json={"input": text}).json()["data"][0]["embedding"]).all()


def test_five_thousand_documents_in_one_call(client, registry):
    batcher = registry.find("reranker", None).batcher
    before = batcher.done
    texts = [f"{number % 100}번 문서" for number in range(5000)]
    answer = rerank(client, documents=texts, top_n=3)
    assert len(answer["results"]) == 3
    assert batcher.done - before == 100  # distinct ones


@pytest.mark.parametrize("body", [{"input": []}, {"input": [[]]}, {"input": [1, "a"]}, {"input": [10**9]},
                                  {"input": [-1]}, {"input": "a", "dimensions": 10**6}, {"input": "a", "dimensions": 0},
                                  {"input": "a", "encoding_format": "hex"},
                                  {"input": "a", "input_type": "poem"}, {}])  # fmt: skip
def test_embeddings_refuse_what_cannot_be(client, body):
    assert client.post("/v1/embeddings", json=body).status_code == 422


@pytest.mark.parametrize("given", [[], None, ["a", 1], 5])
def test_an_input_of_no_kind_is_told_which_there_are(client, given):
    answer = client.post("/v1/embeddings", json={"input": given}).json()["error"]
    assert answer["message"] == "input: expected a text, texts, or token ids, at least one"
    assert answer["param"] == "input"


def test_a_body_beyond_the_limit_gets_413(client):
    answer = client.post("/v1/rerank", json={"query": "q", "documents": ["x" * 2**20] * 5})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_unknown_routes_and_methods(client):
    assert client.post("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert client.get("/v1/rerank").status_code == 405
    slashed = client.post("/v1/rerank/", json={"query": "q", "documents": ["a"]}, follow_redirects=False)
    assert slashed.status_code == 404 and slashed.json()["error"]["code"] == "not_found"
    assert client.get("/health").json() == {"status": "ok"} and client.get("/ready").status_code == 200


def test_several_models_are_told_apart_by_name(folders, tmp_path):
    file = tmp_path / "models.yaml"
    rows = [("one", "reranker"), ("two", "other")]
    lines = [f"- {{name: {name}, reranker: {folders[folder]}}}\n" for name, folder in rows]
    file.write_text("".join(lines) + f"- {{name: e, encoder: {folders['encoder']}}}\n", encoding="utf-8")
    with TestClient(create_app(load(ServedArguments(models=str(file), dtype="float32")))) as client:
        one, two = (by_index(rerank(client, model=name, raw_scores=True)["results"]) for name in ("one", "two"))
        assert np.corrcoef(one, two)[0, 1] < -0.9
        answer = client.post("/v1/rerank", json={"model": "tow", "query": "q", "documents": ["a"]})
        assert answer.status_code == 404 and "two" in answer.json()["detail"]
        assert client.post("/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 422
        assert client.post("/v1/embeddings", json={"model": "any", "input": "a"}).json()["model"] == "e"
        assert client.post("/v1/search", json={"query": "q"}).status_code == 404
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["e", "one", "two"]


def test_openapi_describes_what_is_sent_and_answered(client):
    openapi = client.get("/openapi.json").json()
    schemas = openapi["components"]["schemas"]
    posts = {path: route["post"] for path, route in openapi["paths"].items() if "post" in route}
    assert all({"408", "429", "503"} <= set(route["responses"]) for route in posts.values()) and len(posts) == 9
    assert openapi["security"] == [{}, {"bearer": []}] and openapi["components"]["securitySchemes"].keys() == {"bearer"}
    (either,) = posts["/rerank"]["requestBody"]["content"].values()
    assert len(either["schema"]["anyOf"]) == 2 and "oneOf" not in either["schema"]
    bodies = {"/v1/rerank": {"query": "가", "documents": ["나"]}, "/score": {"text_1": "가", "text_2": "나"},
              "/v1/embeddings": {"input": "길다 " * 900}}  # fmt: skip
    for path, body in bodies.items():
        name = posts[path]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert set(client.post(path, json=body).json()) <= set(schemas[name]["properties"]), path


def test_docs_name_every_route_and_no_foreign_host(client):
    text, routes = client.get("/docs").text, client.get("/openapi.json").json()["paths"]
    assert all(f"{path}</code>" in text for path in routes) and "top_n" in text and "truncate_prompt_tokens" in text
    assert "//" not in text and "<script" not in text and "src=" not in text


def test_one_thread_computes_for_all_models_and_outlives_them(folders, monkeypatch):
    threads, lay_out = [], Inference._lay_out

    def watched(inference):
        threads.append(threading.current_thread().name)
        lay_out(inference)

    monkeypatch.setattr(Inference, "_lay_out", watched)
    flags = ServedArguments(f"dense:{folders['encoder']}", folders["reranker"], dtype="float32")
    first, second = load(flags), load(flags)
    assert len(threads) == 4  # of two encoders and two rerankers
    first.close()
    with TestClient(create_app(second)) as client:
        rerank(client)
        assert client.post("/v1/embeddings", json={"input": DOCUMENTS}).status_code == 200
    assert len(threads) > 5 and set(threads) == {"device_0"}


def test_keys(registry, tmp_path):
    file = tmp_path / "keys"
    file.write_text("first\r\n# for the tests\n\nsecond key\n", encoding="utf-8-sig")  # as Windows' editor saves it
    with TestClient(create_app(registry, DoorRules(read_keys(str(file))))) as client:
        body = {"query": "q", "documents": ["a"]}
        send = lambda key: client.post("/v1/rerank", json=body, headers={"Authorization": key}).status_code  # noqa: E731
        keys = ("Bearer first", "bearer second key", "Bearer third", "Basic first", "", b"Bearer \xe9")
        assert [send(key) for key in keys] == [200, 200, 401, 401, 401, 401]
        assert client.get("/v1/models").status_code == 200
        assert client.get("/metrics").status_code == 401


def test_cors_is_off_unless_told(registry):
    for origins, allowed in (((), None), (("https://a.example",), "https://a.example")):
        with TestClient(create_app(registry, cors_origins=origins)) as client:
            answer = client.get("/health", headers={"Origin": "https://a.example"})
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_one_log_line_a_request_without_its_texts(client, caplog):
    with caplog.at_level(logging.INFO, "koir.serving"):
        rerank(client)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "koir.serving"]
    assert "POST /v1/rerank 200" in line and "texts=10" in line and "연차" not in line


def test_metrics_are_prometheus(client):
    page = client.get("/metrics").text
    assert 'koir_requests_total{route="/v1/rerank",status="200"}' in page
    assert 'koir_computed_texts_total{kind="reranker",model="reranker"}' in page
    assert 'koir_queue_texts{kind="reranker",model="reranker"} 0.0' in page


def test_a_full_queue_gets_429_and_when_to_come_back(client, registry):
    batcher = registry.find("reranker", None).batcher
    batcher.texts += batcher.max_queue
    try:
        answer = client.post("/v1/rerank", json={"query": "q", "documents": ["a"]})
    finally:
        batcher.texts -= batcher.max_queue
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1


def test_a_bug_of_ours_is_500_without_texts(client, registry, monkeypatch, caplog):
    secret = "비밀"

    def broken(items):
        raise ValueError(secret)

    monkeypatch.setattr(registry.find("reranker", None).batcher, "forward", broken)
    answer = client.post("/v1/rerank", json={"query": "q", "documents": ["fresh"]})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
    assert secret not in answer.text + caplog.text and "in broken" in caplog.text


def test_search_is_first_stage_and_reranker_in_one_call(folders, registry):
    corpus = {f"d{number}": text for number, text in enumerate(DOCUMENTS)}
    index = in_memory(load_encoder(folders["encoder"]))(corpus)
    searching, encoder, reranker = Registry(), registry.find("encoder", None), registry.find("reranker", None)
    pipeline = Pipeline("dense:encoder", reranker="reranker", depth=6)
    texts_of = lambda ids: {document: corpus[document] for document in ids}  # noqa: E731
    for name, mixed in (("plain", None), ("mixed", 0.0)):
        changed = replace(pipeline, interpolate=mixed)
        searching.add(ServedPipeline(name, index, texts_of, changed, encoder, reranker))
    with TestClient(create_app(searching)) as client:
        ask = lambda **body: client.post("/v1/search", json={"query": QUERY} | body).json()["results"]  # noqa: E731
        first = ask(model="plain", top_n=10, depth=6, rerank=False)
        found = ask(model="plain", top_n=3)
        spent = client.post("/v1/search", json={"query": QUERY, "model": "mixed", "top_n": 6}).json()
        assert client.post("/v1/search", json={"model": "plian", "query": "q"}).status_code == 404
        assert client.post("/v1/search", json={"model": "plain", "query": "q", "top_n": 0}).status_code == 422
    assert spent["results"] == first[:6] and "reranker" not in spent["milliseconds"]  # a share of 0 is not asked
    scores = dict(zip(corpus, by_index(TestClient(create_app(registry)).post(
        "/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()["results"]), strict=True))  # fmt: skip
    right = sorted((hit["id"] for hit in first[:6]), key=lambda d: -scores[d])[:3]
    assert [hit["id"] for hit in found] == right
    assert all(hit["document"]["text"] == corpus[hit["id"]] for hit in found)
    assert [hit["relevance_score"] for hit in found] == pytest.approx([scores[d] for d in right], abs=1e-5)


def test_registry_answers_by_kind(registry):
    empty = Registry()
    with pytest.raises(Exception, match="no reranker"):
        empty.find("reranker", "x")
    assert isinstance(registry.find("reranker", "any name"), ServedReranker)
    assert isinstance(registry.find("encoder", None), ServedEncoder)


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/v1/score", {"text_1": "가"}, "body", "expected text_1 and text_2"),
        ("/rerank", {"query": "가", "texts": ["나"], "raw_scores": "x"}, "raw_scores", "valid boolean"),
        ("/v1/rerank", {"query": "", "documents": ["가"]}, "query", "found an empty text; expected at least one char"),
        ("/v1/rerank", b'{"query": "\xb0\xa1"}', None, "expected one JSON object"),
        ("/v1/embeddings", {"input": "가", "input_type": "QUERY"}, "input_type", "did you mean query?"),
        ("/v1/embeddings", {"input": "가", "task": "poem"}, "task", "task: found no known kind of text; expected one"),
        (
            "/v1/rerank",
            {"query": "가", "documents": ["나"], "truncate_prompt_tokens": 3},
            "truncate_prompt_tokens",
            "truncate_prompt_tokens: expected at least 8 tokens",
        ),
        ("/v1/rerank", {"query": "\ud800", "documents": ["나"]}, "query", "query: found half of a surrogate pair"),
        ("/v1/search", {"query": " "}, "query", "query: found blanks; expected a question"),
        ("/v1/search", {"query": "가", "filter": {"tenant": 3}}, "filter", "filter: found an unknown field; expected"),
        ("/v1/search", {"query": "가", "top_k": 3}, "top_k", "did you mean top_n?"),
        ("/v1/search", {"query": "가", "\ud800": 3}, "body", "expected one JSON object"),
    ],
)
def test_a_refusal_names_the_field_and_what_is_expected(client, path, body, param, said):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code in (400, 422) and error["param"] == param and said in error["message"]
    assert "Value error" not in answer.text
