import json
from pathlib import Path

import pytest

from koir.errors import ResultError
from koir.evaluation.published import read_published

FOLDER = Path(__file__).resolve().parents[1] / "results/published"
TABLES = {file.stem: read_published(file) for file in sorted(FOLDER.glob("*.json"))}
ONE_RIGHT_ANSWER = ("AutoRAGRetrieval", "PublicHealthQA", "BelebeleRetrieval")


def cells(table):
    for model in table.models:
        for task, metrics in model.cells.items():
            for metric, cell in metrics.items():
                yield model.name, task, metric, cell


def mean(table, model, metric, tasks):
    (row,) = [one for one in table.models if one.name == model]
    return sum(row.cells[task][metric].value for task in tasks) / len(tasks)


def test_the_tables_that_people_quote_are_there():
    assert {"koe5", "kure", "kor-v2", "rerankers"} <= TABLES.keys()
    assert list(TABLES["koe5"].tasks) == ["Ko-StrategyQA", "AutoRAGRetrieval", "PublicHealthQA"]
    assert (len(TABLES["kure"].tasks), len(TABLES["kor-v2"].tasks)) == (8, 9)


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_has_a_source(name):
    for where in cells(TABLES[name]):
        assert where[3].source and where[3].url.startswith("https://"), where


@pytest.mark.parametrize("name", TABLES)
def test_ndcg_never_falls_with_k_where_a_query_has_one_right_answer(name):
    for model in TABLES[name].models:
        for task in ONE_RIGHT_ANSWER:
            found = [(k, model.cells.get(task, {}).get(f"ndcg_at_{k}")) for k in (1, 3, 5, 10)]
            values = [cell.value for _, cell in found if cell is not None and cell.value is not None]
            assert values == sorted(values), (model.name, task)


def test_the_impossible_column_is_kept_as_printed_and_not_used():
    table = TABLES["koe5"]
    for model in table.models:
        cell = model.cells["AutoRAGRetrieval"]["ndcg_at_3"]
        assert cell.printed < model.cells["AutoRAGRetrieval"]["ndcg_at_1"].value
        assert cell.note["ko"] and cell.note["en"]
    right = {model.name: model.cells["AutoRAGRetrieval"]["ndcg_at_3"].value for model in table.models}
    assert right["nlpai-lab/KoE5"] == pytest.approx(0.8199, abs=5e-5)
    assert right["BAAI/bge-m3"] == pytest.approx(0.7903, abs=5e-5)
    assert right["intfloat/multilingual-e5-large"] == pytest.approx(0.7804, abs=5e-5)
    assert right["kf-deberta"] is None


@pytest.mark.parametrize(
    "model, printed",
    [("nlpai-lab/KURE-v1", 0.69473), ("intfloat/multilingual-e5-large", 0.66370), ("nlpai-lab/KoE5", 0.66012)],
)
def test_kures_averages_are_those_of_its_readme(model, printed):
    assert mean(TABLES["kure"], model, "ndcg_at_10", TABLES["kure"].tasks) == pytest.approx(printed, abs=6e-6)


@pytest.mark.parametrize("model, printed", [("nlpai-lab/KURE-v2", 0.8160), ("BAAI/bge-m3", 0.7509)])
def test_the_averages_of_kor_v2_are_those_of_the_card(model, printed):
    assert mean(TABLES["kor-v2"], model, "ndcg_at_10", TABLES["kor-v2"].tasks) == pytest.approx(printed, abs=1e-4)


def test_the_readmes_table_agrees_with_kures_files_but_for_autorag():
    kure = {model.name: model for model in TABLES["kure"].models}
    for model, task, metric, cell in cells(TABLES["koe5"]):
        if model in kure and task != "AutoRAGRetrieval":
            assert cell.value == pytest.approx(kure[model].cells[task][metric].value, abs=6e-5), (model, task, metric)


def table(tmp_path, change):
    """A small table, changed, in a file of its own."""
    block = {"source": "blog", "ndcg_at_10": 0.5}
    both = {"en": "t", "ko": "표"}
    content = {
        "name": "t", "title": both, "protocol": dict(both), "comparable": True, "tasks": {"demo": {"split": "test"}},
        "sources": {"blog": {"title": "a", "url": "https://a", "date": "2026"}},
        "models": [{"name": "m", "kind": "dense", "scores": {"demo": block}}],
    }  # fmt: skip
    change(content, content["models"][0], block)
    file = tmp_path / "t.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "change, place",
    [
        ({"ndcg_at_10": 81.6}, "81.6"),
        ({"ndcg_at_10": None}, "null with a note"),
        ({"source": "elsewhere"}, "one of blog"),
        ({"ndcg@10": 0.5}, "unknown metric"),
        ({"ndcg_at_10": "0.5"}, "found '0.5'"),
        ({"ndcg_at_10": {"value": 0.5, "source": ["blog"]}}, "source: found ['blog']"),
        ({"ndcg_at_10": {"value": 0.5, "note": "x"}}, "note: found 'x'; expected an object with en, ko"),
        ({"ndcg_at_10": {"value": None, "note": {"en": "x"}}}, "note, ko: found nothing; expected a text"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, change, place):
    with pytest.raises(ResultError) as raised:
        read_published(table(tmp_path, lambda content, model, block: block.update(change)))
    assert place in str(raised.value) and "m, demo" in str(raised.value)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda content, model: content.update(title="t"), "title: found 't'"),
        (lambda content, model: content.update(title={"en": "t"}), "title, ko: found nothing"),
        (lambda content, model: content.update(protocol=None), "protocol: found nothing"),
        (lambda content, model: content.update(tasks=["demo"]), "tasks: found ['demo']"),
        (lambda content, model: content.update(tasks={"demo": {}}), "tasks, demo, split: found nothing"),
        (lambda content, model: content.update(name=5), "name: found 5"),
        (lambda content, model: content.update(comparable="no"), "comparable: found 'no'; expected true or false"),
        (lambda content, model: content.update(name="\ud800"), "no readable JSON"),
        (lambda content, model: content.update(models=["m"]), "model 1: found 'm'"),
        (lambda content, model: content["sources"]["blog"].update(url=None), "sources, blog, url: found nothing"),
        (lambda content, model: model.update(name=3), "model 1, name: found 3"),
        (lambda content, model: model.update(kind=["dense"]), "model 1, kind: found ['dense']"),
        (lambda content, model: model.update(parameters="7B"), "m, parameters: found '7B'; expected a number"),
        (lambda content, model: model.update(depth="100"), "m, depth: found '100'"),
        (lambda content, model: model.update(pairs_per_second=12.5), "m, pairs_per_second: found 12.5"),
        (lambda content, model: model.update(pairs_per_second={"value": "fast"}), "pairs_per_second, value: found"),
    ],
)
def test_a_table_of_another_kind_is_named(tmp_path, change, said):
    file = table(tmp_path, lambda content, model, block: change(content, model))
    with pytest.raises(ResultError) as raised:
        read_published(file)
    assert str(raised.value).startswith(str(file)) and said in str(raised.value)


def test_the_small_table_is_right(tmp_path):
    assert read_published(table(tmp_path, lambda content, model, block: None)).models[0].name == "m"


@pytest.mark.parametrize("content", ["null", "0", "true", "[]", '"group"'])
def test_json_that_is_no_table_is_named(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ResultError, match="t.json: found .*; expected an object with name, title"):
        read_published(tmp_path / "t.json")
