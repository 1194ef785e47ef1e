"""/v1/search over an index that scripts/build_index.py wrote, by flags, by pipeline.json and by a models file."""

import importlib.util
import json
import sys

import pytest
from served import ROOT
from starlette.testclient import TestClient

from koir.encoder import load_encoder
from koir.errors import FlagError, RunError
from koir.reranker import load_reranker
from koir.serving.app import create_app
from koir.serving.loading import ModelArguments, load

TEXTS = {
    "김치": "유산균이 젖산을 만들어 김치가 시어진다.",
    "산": "한라산은 제주도에 솟은 화산이다.",
    "쉼": "15일의 유급휴가를 준다.",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An index, an encoder, a reranker and a pipeline.json over them."""
    there = tmp_path_factory.mktemp("search")
    load_encoder("demo", num_hidden_layers=1).save(there / "encoder")
    load_reranker("demo").save(there / "reranker")
    rows = [json.dumps({"_id": name, "text": text}, ensure_ascii=False) for name, text in TEXTS.items()]
    (there / "corpus.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("build_index", ROOT / "scripts" / "build_index.py")
    command = sys.modules["build_index"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    stage = f"dense:{there / 'encoder'}"
    build = lambda stage, uri: command.main(  # noqa: E731
        ["--corpus", str(there / "corpus.jsonl"), "--first_stage", stage, "--index_uri", str(there / uri)]
    )
    build(stage, "index")
    build(f"milvus:{there / 'encoder'}", "milvus.db")
    build(f"hybrid:{there / 'encoder'}", "hybrid")
    pipeline = {
        "first_stage": stage,
        "index_uri": str(there / "index"),
        "reranker": str(there / "reranker"),
        "depth": 2,
    }
    (there / "pipeline.json").write_text(json.dumps(pipeline), encoding="utf-8")
    return there


def search(arguments, **body):
    with TestClient(create_app(load(arguments))) as client:
        answer = client.post("/v1/search", json={"query": "휴가는 며칠?"} | body).json()
        return answer, [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_an_index_by_flags(built):
    flags = ModelArguments(index_uri=str(built / "index"), reranker=str(built / "reranker"), dtype="float32")
    answer, models = search(flags, top_n=3)
    assert {hit["id"]: hit["document"]["text"] for hit in answer["results"]} == TEXTS
    assert models == ["encoder", "reranker", "search"]


def test_a_milvus_file_answers_as_the_folder_does(built):
    found = []
    for uri in ("milvus.db", "hybrid"):
        flags = ModelArguments(index_uri=str(built / uri), reranker=str(built / "reranker"), dtype="float32")
        for rerank in (True, False):
            answer, models = search(flags, top_n=3, rerank=rerank)
            found.append([(hit["id"], hit["document"]["text"], hit["relevance_score"]) for hit in answer["results"]])
            assert models == ["encoder", "reranker", "search"]
    assert {name: text for name, text, _ in found[0]} == TEXTS
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        assert [hit[:2] for hit in ours] == [hit[:2] for hit in theirs]
        assert [hit[2] for hit in ours] == pytest.approx([hit[2] for hit in theirs], abs=1e-5)


def test_a_milvus_that_goes_away_gives_503(built):
    registry = load(ModelArguments(index_uri=str(built / "milvus.db"), reranker="none"))
    (served,) = registry.by_kind["pipeline"].values()
    served.index.dense.name = served.index.lexical.name = "gone"
    with TestClient(create_app(registry)) as client:
        answer = client.post("/v1/search", json={"query": "휴가"})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "index_unavailable"


def test_a_pipeline_and_a_models_file_share_what_they_name(built):
    answer, models = search(ModelArguments(pipeline=str(built / "pipeline.json"), dtype="float32"), top_n=2)
    assert len(answer["results"]) == 2 and models == ["encoder", "reranker", built.name]
    file = built / "models.yaml"
    rows = [
        {"name": "ours", "reranker": str(built / "reranker")},
        {"name": "p", "pipeline": str(built / "pipeline.json")},
    ]
    file.write_text(json.dumps(rows), encoding="utf-8")  # JSON is YAML
    _, models = search(ModelArguments(models=str(file), dtype="float32"))
    assert models == ["encoder", "ours", "p"]  # the reranker once, by its own name


def test_without_flags_or_runs_the_demo_is_served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer, models = search(ModelArguments(dtype="float32"), top_n=1, depth=3)
    assert models == ["demo", "demo", "search"] and answer["milliseconds"].keys() == {"first_stage", "reranker"}


def test_what_does_not_fit_together_is_refused(built):
    other = ModelArguments(first_stage="bm25", index_uri=str(built / "index"), reranker="none")
    with pytest.raises(RunError, match="an index of dense"):
        load(other)
    with pytest.raises(RunError, match="no such file"):
        load(ModelArguments(index_uri=str(built / "nowhere.db"), reranker="none"))
    (built / "bare.json").write_text(json.dumps({"first_stage": "bm25"}), encoding="utf-8")
    (built / "bare.yaml").write_text(json.dumps([{"pipeline": str(built / "bare.json")}]), encoding="utf-8")
    with pytest.raises(FlagError, match="without an index"):
        load(ModelArguments(models=str(built / "bare.yaml")))
    with pytest.raises(FlagError, match="--reranker too"):
        load(ModelArguments(pipeline=str(built / "pipeline.json"), reranker="none"))


@pytest.mark.parametrize("rows", ["", "5", "[]", "[{name: a}]", "[{encoder: x, reranker: y}]", "[{encoder: 5}]", "{"])
def test_a_models_file_that_cannot_be(rows, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text(rows, encoding="utf-8")
    with pytest.raises(FlagError, match="--models"):
        load(ModelArguments(models=str(file)))
