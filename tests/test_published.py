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


def test_the_tables_of_the_issue_are_there():
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


@pytest.mark.parametrize(
    "change, place",
    [
        ({"ndcg_at_10": 81.6}, "81.6"),
        ({"ndcg_at_10": None}, "null with a note"),
        ({"source": "elsewhere"}, "one of blog"),
        ({"ndcg@10": 0.5}, "unknown metric"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, change, place):
    block = {"source": "blog", "ndcg_at_10": 0.5} | change
    table = {
        "name": "t", "title": {}, "protocol": {}, "comparable": True, "tasks": {"demo": {"split": "test"}},
        "sources": {"blog": {"title": "a", "url": "https://a", "date": "2026"}},
        "models": [{"name": "m", "kind": "dense", "scores": {"demo": block}}],
    }  # fmt: skip
    file = tmp_path / "t.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ResultError) as raised:
        read_published(file)
    assert place in str(raised.value) and "m, demo" in str(raised.value)
