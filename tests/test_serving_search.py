"""/v1/search over an index that scripts/build_index.py wrote, by flags, by pipeline.json and by a models file."""

import json
import shutil
import unicodedata

import numpy as np
import pytest
import yaml
from commands import loaded
from starlette.testclient import TestClient

from koir.encoder import load_encoder
from koir.errors import FlagError, RunError
from koir.manifest import DEMO
from koir.reranker import load_reranker
from koir.retrieval.score_maps import sigmoid
from koir.retrieval.stages import _encoder
from koir.serving.app import create_app
from koir.serving.loading import ServedArguments, load
from koir.serving.schemas import SearchRequest
from koir.serving.search import Documents

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
    command = loaded("scripts/build_index.py")
    stage = f"dense:{there / 'encoder'}"
    build = lambda stage, uri: command.main(  # noqa: E731
        ["--corpus", str(there / "corpus.jsonl"), "--first_stage", stage, "--index_uri", str(there / uri)]
    )
    build(stage, "index")
    build(f"milvus:{there / 'encoder'}", "milvus.db")
    build(f"hybrid:{there / 'encoder'}", "hybrid")
    _encoder.cache_clear()
    pipeline = {
        "first_stage": stage,
        "index_uri": str(there / "index"),
        "reranker": str(there / "reranker"),
        "depth": 2,
    }
    (there / "pipeline.json").write_text(json.dumps(pipeline), encoding="utf-8")
    return there


def test_what_is_built_in_an_indexs_place_does_not_mix_with_it(tmp_path):
    file = tmp_path / "documents.jsonl"
    rows = [json.dumps({"_id": name, "text": text}, ensure_ascii=False) + "\n" for name, text in TEXTS.items()]
    file.write_text("".join(rows), encoding="utf-8")
    texts = Documents(file)
    (tmp_path / "new").write_text("".join(reversed(rows)), encoding="utf-8")
    (tmp_path / "new").replace(file)
    assert texts(list(TEXTS)) == TEXTS


def search(arguments, **body):
    with TestClient(create_app(load(arguments))) as client:
        answer = client.post("/v1/search", json={"query": "휴가는 며칠?"} | body).json()
        return answer, [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_a_query_that_macos_took_apart_is_put_together():
    apart = unicodedata.normalize("NFD", "휴가는 며칠?")
    assert SearchRequest(query=apart).query == "휴가는 며칠?" != apart


def test_an_index_by_flags(built):
    flags = ServedArguments(index_uri=str(built / "index"), reranker=str(built / "reranker"), dtype="float32")
    answer, models = search(flags, top_n=3)
    assert {hit["id"]: hit["document"]["text"] for hit in answer["results"]} == TEXTS
    assert models == ["encoder", "reranker", "search"]


def test_a_milvus_file_answers_as_the_folder_does(built):
    found = []
    for uri in ("milvus.db", "hybrid"):
        flags = ServedArguments(index_uri=str(built / uri), reranker=str(built / "reranker"), dtype="float32")
        for rerank in (True, False):
            answer, models = search(flags, top_n=3, rerank=rerank)
            found.append([(hit["id"], hit["document"]["text"], hit["relevance_score"]) for hit in answer["results"]])
            assert models == ["encoder", "reranker", "search"]
    assert {name: text for name, text, _ in found[0]} == TEXTS
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        assert [hit[:2] for hit in ours] == [hit[:2] for hit in theirs]
        assert [hit[2] for hit in ours] == pytest.approx([hit[2] for hit in theirs], abs=1e-5)


def test_a_milvus_that_goes_away_gives_503(built):
    registry = load(ServedArguments(index_uri=str(built / "milvus.db"), reranker="none"))
    (served,) = registry.by_kind["pipeline"].values()
    served.index.dense.name = served.index.lexical.name = "gone"
    with TestClient(create_app(registry)) as client:
        answer = client.post("/v1/search", json={"query": "휴가"})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "index_unavailable"


def test_a_pipeline_and_a_models_file_share_what_they_name(built):
    answer, models = search(ServedArguments(pipeline=str(built / "pipeline.json"), dtype="float32"), top_n=2)
    assert len(answer["results"]) == 2 and models == ["encoder", "reranker", built.name]
    file = built / "models.yaml"
    rows = [
        {"name": "ours", "reranker": str(built / "reranker")},
        {"name": "p", "pipeline": str(built / "pipeline.json")},
    ]
    file.write_text(json.dumps(rows), encoding="utf-8")  # JSON is YAML
    _, models = search(ServedArguments(models=str(file), dtype="float32"))
    assert models == ["encoder", "ours", "p"]  # the reranker once, by its own name


def test_the_encoder_is_loaded_once_and_embeds_the_query_in_its_queue(built):
    registry = load(ServedArguments(index_uri=str(built / "hybrid"), reranker="none", dtype="float32"))
    encoder, pipeline = registry.find("encoder", None), registry.find("pipeline", None)
    assert pipeline.index.dense.encoder is encoder.model and _encoder.cache_info().currsize == 0
    with TestClient(create_app(registry)) as client:
        assert client.post("/v1/search", json={"query": "처음 묻는 말"}).json()["usage"]["total_tokens"] > 2
        assert encoder.batcher.done == 1
        encoder.batcher.texts += encoder.batcher.max_queue
        refused = client.post("/v1/search", json={"query": "휴가"})
        encoder.batcher.texts -= encoder.batcher.max_queue
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1 and pipeline.waiting == 0


@pytest.mark.parametrize("kind", ["bm25", "dense"])
def test_a_part_of_a_hybrid_is_an_index_too_and_its_searches_are_bounded(built, kind):
    spec = kind if kind == "bm25" else f"dense:{built / 'encoder'}"
    registry = load(ServedArguments(spec, "none", str(built / "hybrid"), max_queue=3))
    pipeline = registry.find("pipeline", None)
    assert pipeline.index.name == spec
    with TestClient(create_app(registry)) as client:
        assert client.post("/v1/search", json={"query": "유급휴가"}).json()["results"][0]["id"] == "쉼"
        pipeline.waiting += 3
        refused = client.post("/v1/search", json={"query": "휴가"})
        pipeline.waiting -= 3
        assert client.post("/v1/search", json={"query": "휴가"}).status_code == 200
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "searches are waiting" in refused.json()["detail"]


def test_what_was_cut_is_said(built, caplog):
    flags = ServedArguments(index_uri=str(built / "index"), reranker=str(built / "reranker"), dtype="float32")
    registry = load(flags)
    with TestClient(create_app(registry)) as client, caplog.at_level("INFO", "koir.serving"):
        plain = client.post("/v1/search", json={"query": "휴가"})
        long = client.post("/v1/search", json={"query": "휴가 " * 900, "top_n": 1})
        assert 'koir_truncated_texts_total{model="search"} 1.0' in client.get("/metrics").text
        registry.find("reranker", None).model.max_seq_length = 10
        (of_documents,) = client.post("/v1/search", json={"query": "휴가"}).json()["meta"]["warnings"]
    assert "3 documents" in of_documents and all(name in of_documents for name in TEXTS)
    assert "x-truncated-texts" not in plain.headers and "meta" not in plain.json()
    assert long.headers["x-truncated-texts"] == "1"  # the query; no document lost anything to it
    assert long.json()["meta"]["warnings"] == ["the query was too long and was cut"]
    (line,) = [record.getMessage() for record in caplog.records if "truncated=1" in record.getMessage()]
    assert "texts=4" in line and "tokens=" in line and "휴가" not in line


def test_score_map_is_shown_by_a_search_too(built):
    flags = ServedArguments(index_uri=str(built / "index"), reranker=str(built / "reranker"), score_map="exp_normalize")
    answer, _ = search(flags, top_n=3)
    assert sum(hit["relevance_score"] for hit in answer["results"]) == pytest.approx(1)


def test_of_a_long_query_the_beginning_is_read(built, monkeypatch):
    monkeypatch.setattr("koir.serving.search.LONGEST_QUERY", 3)
    with TestClient(create_app(load(ServedArguments("bm25", "none", str(built / "hybrid"))))) as client:
        short, long = (client.post("/v1/search", json={"query": q}).json() for q in ("휴가", "휴가 유급휴가를 준다"))
    assert [hit["id"] for hit in long["results"]] == [hit["id"] for hit in short["results"]]
    assert long["meta"]["warnings"] == ["the query was too long and was cut"] and "meta" not in short


def test_null_is_what_a_search_does_by_itself(built):
    with TestClient(create_app(load(ServedArguments("bm25", "none", str(built / "hybrid"))))) as client:
        bare, null = (client.post("/v1/search", json={"query": "휴가"} | dict.fromkeys(fields)).json()["results"]
                      for fields in ((), ("top_n", "rerank", "return_documents", "depth")))  # fmt: skip
    assert bare == null and bare[0]["document"]


@pytest.mark.parametrize("part", ["documents.jsonl", "vectors.npy", "dense-*/ids.json", "vocabulary.json", "a line"])
def test_an_index_that_was_cut_short_is_refused_in_one_line(built, part, tmp_path):
    shutil.copytree(built / "hybrid", tmp_path / "cut")
    (file,) = (
        (tmp_path / "cut").rglob("documents.jsonl" if part == "a line" else part.rpartition("/")[2])
        if "*" not in part
        else (tmp_path / "cut").glob(part)
    )
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1] if part == "a line" else whole[: len(whole) * 2 // 3])
    with pytest.raises(RunError, match="cut short|2 of 3 documents"):
        load(ServedArguments(index_uri=str(tmp_path / "cut"), reranker="none"))


def test_a_model_may_have_a_date_for_its_name(built, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text(f"- {{name: 2026-11-30, reranker: {built / 'reranker'}}}\n", encoding="utf-8")
    assert list(load(ServedArguments(models=str(file), dtype="float32")).by_kind["reranker"]) == ["2026-11-30"]


def test_a_model_has_one_name_however_its_path_is_spelt(built, tmp_path, monkeypatch):
    monkeypatch.chdir(built)
    file = tmp_path / "models.yaml"
    rows = [{"name": "rr", "reranker": "./reranker/"}, {"pipeline": str(built / "pipeline.json")}]
    file.write_text(yaml.safe_dump(rows), encoding="utf-8")
    assert list(load(ServedArguments(models=str(file), dtype="float32")).by_kind["reranker"]) == ["rr"]
    file.write_text(yaml.safe_dump([*rows, {"name": "b", "reranker": "reranker"}]), encoding="utf-8")
    with pytest.raises(
        FlagError, match="--models, b: found the reranker that is served as rr; expected each model once"
    ):
        load(ServedArguments(models=str(file), dtype="float32"))


def test_a_search_for_blanks_is_refused(built):
    with TestClient(create_app(load(ServedArguments("bm25", "none", str(built / "hybrid"))))) as client:
        answer = client.post("/v1/search", json={"query": " \u3000\n"})
    assert answer.status_code == 422 and "found blanks; expected a question" in answer.text


@pytest.mark.parametrize(("top_n", "status"), [(-1, 422), (0, 422), (10**9, 200)])
def test_top_n_of_a_search(built, top_n, status):
    registry = load(ServedArguments("bm25", "none", str(built / "hybrid")))
    with TestClient(create_app(registry)) as client:
        answer = client.post("/v1/search", json={"query": "휴가", "top_n": top_n})
    assert answer.status_code == status and (status == 422 or len(answer.json()["results"]) == 1)


def evaluated(built, there, *tasks, more=()):
    """Evaluate the demo's corpus under other names with --index_uri; the pipeline.json of the reranked hybrid."""
    import evaluate

    for task in tasks:
        shutil.copytree(DEMO / "beir", there / task)
    flags = ["--first_stage", "bm25", f"hybrid:{built / 'encoder'}", "--reranker", str(built / "reranker")]
    flags += ["--depth", "3", "--index_uri", str(there / "indexes"), "--output_dir", str(there / "results"), *more]
    evaluate.main([*flags, "--tasks", *[str(there / task) for task in tasks]])
    return next(file for file in there.glob("results/hybrid*+*/pipeline.json"))


@pytest.mark.parametrize("more", [(), ("--passage_tokens", "12")], ids=["", "passages"])
def test_what_was_evaluated_is_served(built, tmp_path, capsys, more):
    pipeline = evaluated(built, tmp_path, "law", more=more)
    assert ("@3p12" in pipeline.parent.name) == bool(more)
    row = json.loads(next(pipeline.parent.glob("law.queries.jsonl")).open(encoding="utf-8").readline())
    queries = [json.loads(line) for line in (tmp_path / "law/queries.jsonl").open(encoding="utf-8")]
    (query,) = [question["text"] for question in queries if question["_id"] == row["query_id"]]
    answer, models = search(ServedArguments(pipeline=str(pipeline), dtype="float32"), query=query, top_n=3)
    assert [hit["id"] for hit in answer["results"]] == row["top"][:3] and models[-1] == pipeline.parent.name
    logits = np.array(row["scores"][:3], dtype=np.float32)
    shown = [hit["relevance_score"] for hit in answer["results"]]
    assert shown == pytest.approx(sigmoid(logits).tolist(), rel=1e-4)
    assert all(hit["document"]["text"] for hit in answer["results"])
    shutil.rmtree(tmp_path / "indexes")  # results are on disk, so nothing has to be searched again
    shutil.rmtree(tmp_path / "law")
    evaluated(built, tmp_path, "law", more=more)
    assert search(ServedArguments(pipeline=str(pipeline), dtype="float32"), query=query, top_n=3)[0]["results"]


def test_a_folder_of_several_corpora_serves_the_one_that_is_named(built, tmp_path, capsys):
    pipeline = evaluated(built, tmp_path, "law", "news")
    registry = load(ServedArguments(pipeline=str(pipeline)))
    assert not registry.by_kind["pipeline"] and registry.by_kind["reranker"] and registry.by_kind["encoder"]
    assert "no search" in (said := capsys.readouterr().err) and "law, news" in said
    named = ServedArguments(pipeline=str(pipeline), index_uri=str(tmp_path / "indexes/news"))
    assert search(named)[0]["results"]
    for file in tmp_path.glob("indexes/*/run.json"):
        file.unlink()
    assert not load(ServedArguments(pipeline=str(pipeline))).by_kind["pipeline"]
    assert "scripts/build_index.py" in capsys.readouterr().err
    (words,) = tmp_path.glob("results/bm25+*/pipeline.json")
    assert list(load(ServedArguments(pipeline=str(words))).by_kind["reranker"]) == ["reranker"]


def test_what_an_indexs_folder_is_served_as_is_said_when_it_changes(built, tmp_path, capsys):
    words = ["--index_uri", str(tmp_path / "index"), "--first_stage"]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "d1", "text": "연차는 15일이다."}\n', encoding="utf-8")
    for stage, weight, read, before in (
        ("bm25", (), "demo", None),
        ("bm25", (), "demo", None),
        ("dense:demo", (), "demo", "bm25 over 280 documents"),
        ("hybrid:demo", (), "demo", "dense:demo over 280 documents"),
        ("hybrid:demo", ("--fusion", "rrf"), "demo", "hybrid:demo (weighted 0.3) over 280 documents"),
        ("hybrid:demo", ("--fusion", "rrf"), str(corpus), "hybrid:demo (rrf) over 280 documents"),
    ):
        loaded("scripts/build_index.py").main([*words, stage, *weight, "--corpus", read])
        said = capsys.readouterr().err
        assert said.count("note: ") == bool(before)
        assert f"note: {tmp_path}/index described {before}" in said or not before
    assert "it describes hybrid:demo (rrf) over 1 documents" in said


def test_a_pipeline_without_an_index_says_that_there_is_no_search(built, tmp_path, capsys):
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps({"first_stage": f"dense:{built / 'encoder'}", "index_uri": None}), encoding="utf-8")
    answer, models = search(ServedArguments(pipeline=str(file), dtype="float32"))
    assert "found no index on this server; start it with --index_uri FOLDER" in answer["message"]
    assert "note: there is no /v1/search, since pipeline.json names no index" in capsys.readouterr().err


def test_a_first_stage_without_an_index_says_that_there_is_no_search(built, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    registry = load(ServedArguments(first_stage=f"hybrid:{built / 'encoder'}", dtype="float32"))
    said = capsys.readouterr().err
    assert list(registry.by_kind["encoder"]) == ["encoder"] and not registry.by_kind["pipeline"]
    assert "note: there is no /v1/search without --index_uri FOLDER" in said
    assert "default: --reranker none (no complete reranker run): no reranking\n" in said


def test_without_flags_or_runs_the_demo_is_served(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer, models = search(ServedArguments(dtype="float32"), top_n=1, depth=3)
    assert models == ["demo", "demo", "search"] and answer["milliseconds"].keys() == {"first_stage", "reranker"}


def test_what_does_not_fit_together_is_refused(built):
    other = ServedArguments(first_stage="bm25", index_uri=str(built / "index"), reranker="none")
    with pytest.raises(RunError, match="no index of bm25 .*an index of dense"):
        load(other)
    with pytest.raises(RunError, match="no such file"):
        load(ServedArguments(index_uri=str(built / "nowhere.db"), reranker="none"))
    for stage in ("hybird:demo", "demo"):  # nothing is searched, so no first stage is opened
        with pytest.raises(FlagError, match=f"--first_stage {stage}: found an unknown first stage"):
            load(ServedArguments(first_stage=stage, reranker="none"))
    for stage in ("bm25", f"hybrid:{built / 'encoder'}"):
        with pytest.raises(FlagError, match="found a Milvus in --index_uri"):
            load(ServedArguments(first_stage=stage, index_uri=str(built / "milvus.db"), reranker="none"))
    (built / "bare.json").write_text(json.dumps({"first_stage": "bm25"}), encoding="utf-8")
    (built / "bare.yaml").write_text(json.dumps([{"pipeline": str(built / "bare.json")}]), encoding="utf-8")
    with pytest.raises(FlagError, match="without an index"):
        load(ServedArguments(models=str(built / "bare.yaml")))
    with pytest.raises(FlagError, match="--reranker too"):
        load(ServedArguments(pipeline=str(built / "pipeline.json"), reranker="none"))


def test_more_candidates_than_a_search_may_have_are_refused_at_the_start(built, tmp_path):
    for given in (0, 1001):
        with pytest.raises(FlagError, match=f"--depth: found {given}; expected 1 to 1,000"):
            load(ServedArguments(first_stage="bm25", reranker="none", index_uri=str(built / "hybrid"), depth=given))
    content = json.loads((built / "pipeline.json").read_text(encoding="utf-8")) | {"depth": 2000}
    file, models = tmp_path / "deep" / "pipeline.json", tmp_path / "models.yaml"
    file.parent.mkdir()
    file.write_text(json.dumps(content), encoding="utf-8")
    models.write_text(json.dumps([{"pipeline": str(file)}]), encoding="utf-8")
    for flags in (ServedArguments(pipeline=str(file)), ServedArguments(models=str(models))):
        with pytest.raises(FlagError, match="pipeline deep, depth: found 2,000; expected at most 1,000"):
            load(flags)
    assert load(ServedArguments(pipeline=str(file), depth=3)).find("pipeline", None).pipeline.depth == 3
    file.write_text(json.dumps(content | {"index_uri": None}), encoding="utf-8")
    assert load(ServedArguments(pipeline=str(file))).by_kind["reranker"]  # there is no search


@pytest.mark.parametrize(
    "rows",
    ["", "5", "[]", "[{name: a}]", "[{encoder: x, reranker: y}]", "[{encoder: 5}]", "{", "[{name: !!bool x}]",
     "[{encoder: !!timestamp 2026-11-30}]", "- &a [*a]", "[" * 3000],
)  # fmt: skip
def test_a_models_file_that_cannot_be(rows, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text(rows, encoding="utf-8")
    with pytest.raises(FlagError, match="--models"):
        load(ServedArguments(models=str(file)))
