import codecs
import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import streamlit as st
from made_results import PIPELINES, TASKS, write_results, write_run
from streamlit.testing.v1 import AppTest

import leaderboard
from koir.board import export, overview, standing, texts
from koir.board.labels import WORDS, verbatim, words
from koir.board.pipeline import _best, first_stage_alone
from koir.board.rows import ends_before, read_board
from koir.board.standing import Standing, _indistinct, mark_ties, pareto, standings, values_of
from koir.board.tables import as_csv, as_markdown, measured, records
from koir.board.training import _summary
from koir.errors import ResultError
from koir.evaluation.significance import paired_p
from koir.evaluation.stored import TrainingRun, per_query, query_rows, read_result, training_runs
from koir.text_tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
METRIC = "ndcg_at_10"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A results folder where every pipeline has every task, and what was written to it."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, write_results(folder)


@pytest.fixture(scope="module")
def made(whole, tmp_path_factory):
    """A folder with results, where bm25 lacks a task, and runs; and what was written to the results."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(whole[0], folder / "results")
    (folder / "results/bm25/AutoRAGRetrieval.json").unlink()
    write_run(folder / "outputs/v1.1-demo")
    write_run(folder / "outputs/v1-demo", cut_short=True)
    lacking = {name: dict(tasks) for name, tasks in whole[1].items()}
    del lacking["bm25"]["AutoRAGRetrieval"]
    return folder, lacking


@pytest.fixture
def results(whole, tmp_path):
    """A copy of the whole folder that a test may damage."""
    return shutil.copytree(whole[0], tmp_path / "results")


def value(contents, name, task, metric=METRIC):
    return contents[name][task]["scores"]["test"][0][metric]


def page(made, monkeypatch, **query):
    folder = made[0] if isinstance(made, tuple) else made
    argv = ["leaderboard.py", "--results", str(folder / "results"), "--outputs", str(folder / "outputs")]
    monkeypatch.setattr(sys, "argv", argv)
    app = AppTest.from_file(str(ROOT / "leaderboard.py"), default_timeout=60)
    for key, text in query.items():
        app.query_params[key] = text
    app.run()
    assert not app.exception
    return app


def tables_of(app):
    return [element.proto.body for element in app.get("html") if "<table>" in element.proto.body]


def words_of(app):
    kinds = (app.caption, app.warning, app.info, app.markdown, app.code, app.text, app.error)
    return "\n".join(element.value for kind in kinds for element in kind)


def lines_of(table):
    """The rows of an HTML table as lists of texts."""
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_what_is_read_back_is_what_was_scored(made):
    folder, contents = made
    stored = read_result(folder / "results/dense-v1.1-demo+ko@50/사내규정.json")
    values = values_of(stored, METRIC)
    assert sum(values.values()) / len(values) == pytest.approx(value(contents, stored.name, stored.task), abs=1e-12)


def test_the_ceiling_is_what_a_perfect_reranker_would_reach(made):
    stored = read_result(made[0] / "results/dense-v1.1-demo/사내규정.json")
    rows = query_rows(stored)
    best = per_query(rows, 5)
    within = [float(row["relevant"][0] in row["top"][:5]) for row in rows]
    assert [best[row["query_id"]][METRIC] for row in rows] == within


def test_the_ceiling_puts_higher_grades_first():
    row = {"query_id": "q", "relevant": ["a", "b"], "grades": [1, 3], "top": ["x", "a", "b"], "scores": [3, 2, 1]}
    assert per_query([row], 3)["q"][METRIC] == 1
    assert per_query([row], 2)["q"][METRIC] == pytest.approx(1 / (3 + 1 / math.log2(3)))


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda text: text[:200], "no readable JSON"),
        (lambda text: text.replace('"koir"', '"other"'), "KeyError"),
        (lambda text: text.replace('"ndcg_at_10": 0.', '"ndcg_at_10": 7.'), "from 0 to 1"),
        (lambda text: text.replace('"mrr_at_10": 0.', '"mrr": 0.'), "mrr_at_10"),
        (lambda text: "[]", "list"),
        (lambda text: "[" * 100_000, "no readable JSON"),
        (lambda text: text.replace('"candidate_recall": 0.9', '"candidate_recall": "most"'), "candidate_recall"),
        (lambda text: text.replace('"milliseconds_per_query": 2.0', '"milliseconds_per_query": [2]'), "milliseconds"),
        (lambda text: text.replace('"depth": 100', '"depth": "100"'), "depth"),
        (lambda text: text.replace('"task_name": "사내규정"', r'"task_name": "\ud800"'), "a name of another kind"),
    ],
)
def test_a_broken_result_is_named_and_left_out(results, damage, said):
    file = results / "bm25/사내규정.json"
    file.write_text(damage(file.read_text(encoding="utf-8")), encoding="utf-8")
    board = read_board(results)
    assert [str(file) in str(error) and said in str(error) for error in board.broken] == [True]
    (row,) = [row for row in board.ours if row.name == "bm25"]
    assert list(row.cells) == ["AutoRAGRetrieval"]


def test_results_of_two_pipelines_under_one_name_make_no_mean(results):
    for number, file in enumerate(sorted((results / "bm25").glob("*.json"))):
        if file.name in ("run.json", "pipeline.json"):
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        content["koir"]["pipeline_key"] = f"key {number}"
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        os.utime(file, (number, number))
    board = read_board(results)
    (row,) = [row for row in board.ours if row.name == "bm25"]
    assert len(row.cells) == 1 and len(board.broken) == 1
    assert "a result of other weights or settings" in str(board.broken[0])


def test_another_order_of_queries_changes_no_rank(results):
    def ranks():
        board = read_board(results)
        found, common = standings(board.rows("own"), board.groups["own"], METRIC)
        mark_ties(found, common, METRIC)
        return {one.row.name: (one.rank, one.tested) for one in found}

    before = ranks()
    for file in (results / "bm25").glob("*.queries.jsonl"):
        file.write_text("".join(reversed(file.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")
    assert ranks() == before


@pytest.mark.parametrize("gains", [[0.37] * 5, [1.0] + [0.01] * 50], ids=["few", "one large"])
def test_ranks_say_what_the_paired_test_says(gains):
    vectors = np.zeros((2, 1000))
    vectors[0, : len(gains)] = gains
    assert (_indistinct(vectors, 0) == [1]) == (paired_p(*vectors) >= 0.05)


def test_per_query_rows_that_are_cut_short_are_not_used(results):
    stored = read_result(results / "bm25/사내규정.json")
    text = stored.queries_file.read_text(encoding="utf-8")
    stored.queries_file.write_text("".join(text.splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(ResultError, match="39 queries"):
        query_rows(stored)
    board = read_board(results)
    found, common = standings(board.rows("own"), board.groups["own"], METRIC)
    mark_ties(found, common, METRIC)
    assert {one.row.name: one.tested for one in found}["bm25"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"top": 5},
        {"relevant": "d1"},
        {"relevant": [1]},
        {"query_id": "\ud800"},
        {"grades": [1, 1]},
        {"grades": ["1"]},
        {"grades": True},
        {"grades": [10**30]},
        {"scores": None},
    ],
)
def test_per_query_rows_of_another_kind_are_not_used(change, results, monkeypatch):
    file = results / "bm25/사내규정.queries.jsonl"
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]) + "\n", encoding="utf-8")
    with pytest.raises(ResultError, match="line 1: found nothing readable"):
        query_rows(read_result(results / "bm25/사내규정.json"))


def test_other_data_or_another_split_under_one_name_is_another_task(results):
    for name, change in (("bm25", ("test", "dev")), ("dense-v1.1-demo", ("사내규정", "바뀐자료"))):
        file = results / name / "사내규정.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        if name == "bm25":
            content["scores"] = {"dev": content["scores"]["test"]}
        else:
            content["koir"]["task_fingerprint"] = change[1]
        file.write_text(json.dumps(content), encoding="utf-8")
    board = read_board(results)
    assert {"사내규정", "사내규정 (dev)", "사내규정 #바뀐자료"} <= set(board.groups["own"])
    assert board.clashes == ["사내규정"]


def test_a_run_that_was_cut_short_is_read_up_to_there(made):
    runs = {run.name: run for run in training_runs(made[0] / "outputs")}
    assert (runs["v1-demo"].skipped, len(runs["v1-demo"].lines), runs["v1-demo"].facts) == (1, 7, {})
    assert runs["v1.1-demo"].facts["negatives_per_query"] == 511


def test_a_folder_named_as_a_runs_lines_is_no_run(tmp_path):
    (tmp_path / "odd/metrics.jsonl").mkdir(parents=True)
    write_run(tmp_path / "v1-demo")
    assert [run.name for run in training_runs(tmp_path)] == ["v1-demo"]


def test_a_run_with_odd_numbers_is_shown_without_them(tmp_path, monkeypatch):
    write_run(tmp_path / "outputs/odd")
    facts = {"trainer": 5, "negatives_per_query": "many", "tokens_per_second": None}
    (tmp_path / "outputs/odd/run.json").write_text(json.dumps(facts))
    with (tmp_path / "outputs/odd/metrics.jsonl").open("a") as out:
        out.write('{"step": "last", "loss": 1}\n{"step": 7, "loss": 1%s}\n' % ("0" * 400))
    (run,) = training_runs(tmp_path / "outputs")
    assert (run.skipped, run.lines[-1]) == (1, {"step": 7})
    app = page(tmp_path, monkeypatch, view="training")
    assert lines_of(tables_of(app)[0])[1][:5] == ["odd", "complete", "–", "–", "7"]


# --- who stands where ------------------------------------------------------------------------------------------------


def test_the_mean_is_over_common_tasks_alone(made):
    folder, contents = made
    board = read_board(folder / "results")
    found, common = standings(board.rows("own"), board.groups["own"], METRIC)
    assert common == ["사내규정"]
    for one in found:
        assert one.mean == value(contents, one.row.name, "사내규정")
        assert one.coverage == ("1/2" if one.row.name == "bm25" else "2/2")
    found, common = standings([row for row in board.ours if row.name != "bm25"], board.groups["own"], METRIC)
    assert sorted(common) == sorted(TASKS)
    assert found[0].mean == pytest.approx(sum(value(contents, found[0].row.name, task) for task in TASKS) / 2)


def test_without_a_common_task_the_rest_stands_below_unranked(results):
    (results / "bm25/사내규정.json").unlink()
    for name in ("dense-v1.1-demo", "dense-v1.1-demo+ko@10", "dense-v1.1-demo+ko@50"):
        (results / name / "AutoRAGRetrieval.json").unlink()
    board = read_board(results)
    found, common = standings(board.rows("own"), board.groups["own"], METRIC)
    assert common == ["사내규정"]
    assert (found[-1].row.name, found[-1].mean, found[-1].rank) == ("bm25", None, None)


def test_ranks_that_a_paired_test_cannot_tell_apart_are_tied(made, results):
    board = read_board(results)
    twin = results / "twin"
    twin.mkdir()
    for file in (results / "dense-v1.1-demo+ko@50").iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    board = read_board(results)
    found, common = standings(board.rows("own"), board.groups["own"], METRIC)
    mark_ties(found, common, METRIC)
    by_name = {one.row.name: one for one in found}
    assert (by_name["twin"].rank, by_name["dense-v1.1-demo+ko@50"].rank) == (1, 1)
    assert "twin" in by_name["dense-v1.1-demo+ko@50"].tied
    assert by_name["dense-v1.1-demo"].rank > 2 and "twin" not in by_name["dense-v1.1-demo"].tied


def test_a_rank_is_never_smaller_than_that_of_the_row_above(monkeypatch):
    """Its noise keeps the last row from being told from the first, but not the second from the first."""
    first = np.full(200, 0.5)
    vectors = np.array([first, first - 0.01, first - 0.011 + np.tile([0.4, -0.4], 100)]) / 200
    monkeypatch.setattr(standing, "_vectors", lambda *_: ([0, 1, 2], vectors))
    found = [Standing(SimpleNamespace(name=str(mean)), {}, 1, mean=mean) for mean in vectors.sum(axis=1)]
    mark_ties(found, ["demo"], METRIC)
    assert [one.rank for one in found] == [1, 2, 2] and len(found[2].tied) == 2


def test_published_rows_come_with_the_groups_own_table_first(made):
    board = read_board(made[0] / "results", ROOT / "results")
    (koe5,) = [row for row in board.rows("koe5") if row.name == "nlpai-lab/KoE5"]
    assert koe5.cells["AutoRAGRetrieval"]["ndcg_at_1"].value == 0.7017  # KURE's file says 0.7193
    assert koe5.cells["AutoRAGRetrieval"]["ndcg_at_10"].value == 0.84339  # from KURE's file: the README has none
    assert not any(row.ours for row in board.rows("rerankers"))
    assert not any("reranker" in row.kinds for row in board.rows("kor-v2") if not row.ours)


def test_equal_means_have_equal_ranks_where_nothing_is_tested():
    board = read_board(ROOT / "results")
    found, _ = standings(board.rows("koe5"), ["PublicHealthQA"], "ndcg_at_1")
    ranks = {one.rank: one.mean for one in found}
    assert len(ranks) < len(found)  # published tables have ties
    for one in found:
        assert one.mean == ranks[one.rank] and one.rank == 1 + sum(other.mean > one.mean for other in found)


def test_nothing_is_said_of_candidates_or_ranks_that_were_not_kept(made):
    stored = read_result(made[0] / "results/dense-v1.1-demo/사내규정.json")
    shallow = replace(stored, koir=stored.koir | {"pipeline": stored.koir["pipeline"] | {"depth": 100}})
    assert [_best("", str(stored.file), depth, METRIC, shallow) is None for depth in (100, 150)] == [False, True]
    row = SimpleNamespace(depth=5)
    assert [ends_before(row, f"ndcg_at_{k}") for k in (3, 5, 10)] == [False, False, True]


def test_the_pareto_front_holds_what_nothing_beats():
    assert pareto([(1, 0.5), (2, 0.4), (2, 0.6), (3, 0.6), (9, 0.9)]) == [0, 2, 4]
    assert pareto([(1, 0.5), (1, 0.5), (2, 0.5), (2, 0.6), (0.5, 0.1), (3, 0.6)]) == [4, 0, 1, 3]


def test_a_first_stage_is_found_wherever_its_index_lay(results):
    for file in (results / "dense-v1.1-demo").glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content.get("koir", {"pipeline": {}})["pipeline"]["index_uri"] = "indexes"
        file.write_text(json.dumps(content), encoding="utf-8")
    rows = {row.name: row for row in read_board(results).ours}
    assert first_stage_alone(rows["dense-v1.1-demo+ko@10"], list(rows.values())) is rows["dense-v1.1-demo"]


def test_a_family_differs_in_depth_alone(results):
    name = "dense-v1.1-demo+ko@10"
    for more, change in (("p200", {"passage_tokens": 200}), ("~mixed", {"interpolate": 0.5, "normalise": "raw"})):
        for file in shutil.copytree(results / name, results / f"{name}{more}").glob("*.json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            content.get("koir", {"pipeline": {}})["pipeline"] |= change
            file.write_text(json.dumps(content), encoding="utf-8")
    families = {row.name: row.family for row in read_board(results).ours}
    assert families[name] == families["dense-v1.1-demo+ko@50"]
    assert len({families[f"{name}{more}"] for more in ("", "p200", "~mixed")}) == 3


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_csv_holds_the_numbers_of_the_json_files(made):
    folder, contents = made
    board = read_board(folder / "results")
    found, common = standings(board.rows("own"), board.groups["own"], METRIC)
    lines = list(csv.DictReader(io.StringIO(as_csv(records(found, board.groups["own"], common)))))
    for line in lines:
        for task in contents[line["name"]]:
            assert float(line[task]) == value(contents, line["name"], task)
        low, high = contents[line["name"]]["사내규정"]["koir"]["intervals"][METRIC]
        assert (float(line["low"]), float(line["high"])) == (low, high)


def test_the_export_needs_no_browser_and_fills_the_readme_between_its_markers(made, tmp_path):
    folder, contents = made
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- leaderboard -->\nold\n<!-- /leaderboard -->\nafter\n", encoding="utf-8")
    board = read_board(folder / "results", ROOT / "results")
    export.write(board, str(tmp_path / "docs/leaderboard.md"), "ko", readme)
    text = (tmp_path / "docs/leaderboard.md").read_text(encoding="utf-8")
    assert f"{value(contents, 'bm25', '사내규정'):.4f}" in text and "KURE의 여덟 과제" in text
    assert "https://github.com/yjoonjang/embedding-train" in text
    told = readme.read_text(encoding="utf-8")
    assert told.startswith("before\n<!-- leaderboard -->\n| ") and told.endswith("<!-- /leaderboard -->\nafter\n")
    assert "old" not in told


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--exprot", "x"], "did you mean --export"),
        ([], "streamlit run"),
        (["--lang", "fr"], "en or ko"),
        (["--export"], "--export: found nothing; expected a value"),
    ],
)
def test_the_command_says_what_it_wants(flags, said):
    done = subprocess.run([sys.executable, ROOT / "leaderboard.py", *flags], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_overview_shows_the_numbers_of_the_files(made, monkeypatch):
    app = page(made, monkeypatch)
    header, *rows = lines_of(tables_of(app)[0])
    assert header[:4] == ["Rank", "Pipeline", "Whose", "Mean"]
    shown = {row[1]: row for row in rows}
    for name, tasks in made[1].items():
        for task, content in tasks.items():
            printed = shown[name][header.index(task)]
            assert printed == f"{content['scores']['test'][0][METRIC]:.4f}"
    assert shown["bm25"][header.index("Tasks")] == "1/2"
    assert "None" not in words_of(app)
    assert '<th scope="row"' in tables_of(app)[0] and "<caption>" in tables_of(app)[0]


def test_controls_change_the_table_and_the_url(made, monkeypatch):
    app = page(made, monkeypatch)
    app.selectbox(key="metric").set_value("mrr").run()
    app.radio(key="k").set_value(5).run()
    app.text_input(key="search").set_value("ko@").run()
    assert not app.exception
    (table, *_) = tables_of(app)
    assert "MRR@5" in table and [row[1] for row in lines_of(table)[1:]] == [
        "dense-v1.1-demo+ko@50",
        "dense-v1.1-demo+ko@10",
    ]
    url = {key: app.query_params[key] for key in ("metric", "k", "search")}
    assert url == {"metric": "mrr", "k": "5", "search": "ko@"}
    again = page(made, monkeypatch, metric="mrr", k="5", search="ko@")
    assert lines_of(tables_of(again)[0]) == lines_of(table)


def test_back_brings_every_control_back(made, monkeypatch):
    app = page(made, monkeypatch, kind="reranker")
    app.radio(key="k").set_value(5).run()
    app.multiselect(key="kind").set_value([]).run()
    app.query_params["kind"] = "reranker"
    app.run()
    assert (app.multiselect(key="kind").value, app.radio(key="k").value) == (["reranker"], 5)
    del app.query_params["k"]
    app.run()
    assert app.radio(key="k").value == 10 and "k" not in app.query_params


def test_a_second_click_before_the_browser_wrote_the_first_ones_url_undoes_nothing(made, monkeypatch):
    app = page(made, monkeypatch)
    app.radio(key="k").set_value(5).run()
    del app.query_params["k"]
    app.toggle(key="complete").set_value(True).run()
    assert {key: app.query_params[key] for key in ("k", "complete")} == {"k": "5", "complete": "1"}


def test_the_language_changes_words_and_nothing_else(made, monkeypatch):
    app = page(made, monkeypatch, metric="recall", kind="reranker")
    before = lines_of(tables_of(app)[0])
    app.radio(key="lang").set_value("ko").run()
    assert not app.exception
    after = lines_of(tables_of(app)[0])
    assert (app.title[0].value, after[0][0]) == ("어떤 파이프라인을 쓸까?", "순위")
    assert [row[3:] for row in after[1:]] == [row[3:] for row in before[1:]]
    assert (app.query_params["lang"], app.query_params["metric"]) == ("ko", "recall")


@pytest.mark.parametrize("cut", [True, False], ids=["cut short", "missing"])
def test_rows_that_could_not_be_tested_are_named_on_the_page_and_in_the_export(results, monkeypatch, cut):
    file = results / "bm25/사내규정.queries.jsonl"
    file.write_text("{", encoding="utf-8") if cut else file.unlink()
    app = page(results.parent, monkeypatch)
    (named,) = [element.value for element in app.text if "bm25/사내규정.queries.jsonl" in element.value]
    assert "1 files of per-query results" in app.expander[1].label and "\n" not in named
    export.write(read_board(results), str(results.parent / "board.md"), "en", results.parent / "README.md")
    assert f"- {named}" in (results.parent / "board.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("view", ["overview", "cost", "pipeline", "compare"])
def test_lists_that_end_before_k_are_named(results, monkeypatch, view):
    for file in (results / "dense-v1.1-demo+ko@10").glob("*.json"):
        file.write_text(file.read_text(encoding="utf-8").replace('"depth": 10,', '"depth": 5,'), encoding="utf-8")
    query = {"view": view, "pipeline": "dense-v1.1-demo+ko@10", "a": "dense-v1.1-demo+ko@10"}
    said = "Lists of depth 5 end before rank 10; choose k of at most 5: dense-v1.1-demo+ko@10."
    assert said in words_of(page(results.parent, monkeypatch, **query))
    assert "end before rank" not in words_of(page(results.parent, monkeypatch, k="5", **query))
    export.write(read_board(results), str(results.parent / "board.md"), "en", results.parent / "README.md")
    assert said in (results.parent / "board.md").read_text(encoding="utf-8")


def test_the_row_that_shrinks_the_mean_is_named_beside_unranked_ones(results, monkeypatch):
    other = shutil.copytree(results / "bm25", results / "other")
    for file in other.glob("*.json"):
        content = file.read_text(encoding="utf-8").replace("AutoRAGRetrieval", "demo")
        file.write_text(content, encoding="utf-8")
    (other / "사내규정.json").unlink()
    (results / "dense-v1.1-demo/AutoRAGRetrieval.json").unlink()
    said = words_of(page(results.parent, monkeypatch))
    assert "1 rows stand below the others without a mean and a rank: other." in said
    assert "4 rows lack some, fewest tasks first: dense-v1.1-demo, " in said


def test_what_an_url_asks_for_in_vain_is_left_out(made, monkeypatch):
    app = page(made, monkeypatch, view="nowhere", metric="bleu", k="7", group="mars", depth="3")
    assert app.radio(key="view").value == "overview" and len(lines_of(tables_of(app)[0])) == 5


@pytest.mark.parametrize("group", ["koe5", "kure", "kor-v2", "rerankers"])
def test_published_groups_show_sources_and_notes(made, monkeypatch, group):
    app = page(made, monkeypatch, group=group, k="3" if group == "koe5" else "10", lang="ko")
    (table,) = tables_of(app)
    assert 'href="https://' in table and "공개" in table
    assert ("README에는 48.01로" in table) == (group == "koe5")


@pytest.mark.parametrize("view", ["overview", "cost"])
def test_names_are_no_markdown(results, monkeypatch, view):
    for number in (10, 50):
        (results / f"dense-v1.1-demo+ko@{number}").rename(results / f"dense-v1.1-demo+ko@{number}~mixed")
        (results / f"dense-v1.1-demo+ko@{number}~mixed/AutoRAGRetrieval.json").unlink()
    said = words_of(page(results.parent, monkeypatch, view=view))
    assert "dense-v1.1-demo+ko@50\\~mixed" in said and not re.search(r"(?<!\\)~", said)


def test_a_grid_can_take_the_tables_place(made, monkeypatch):
    app = page(made, monkeypatch, grid="1")
    assert not tables_of(app)
    frame = app.dataframe[0].value.set_index("name")
    assert frame.loc["bm25", "사내규정"] == value(made[1], "bm25", "사내규정")


@pytest.mark.parametrize("cost, dearest", [("milliseconds", "130.0"), ("depth", "50")])
def test_quality_against_cost_names_the_front(made, monkeypatch, cost, dearest):
    app = page(made, monkeypatch, view="cost", cost=cost)
    rows = lines_of(tables_of(app)[0])[1:]
    assert (rows[-1][0], rows[-1][1], rows[-1][-1]) == ("dense-v1.1-demo+ko@50", dearest, "●")
    assert ("2 rows have no such cost" in words_of(app)) == (cost == "depth")


def test_a_pipelines_view_says_what_evaluation_said(made, monkeypatch):
    name = "dense-v1.1-demo+ko@50"
    app = page(made, monkeypatch, view="pipeline", pipeline=name, on="사내규정", outcome="lost")
    ladder, depths, queries, documents = tables_of(app)
    header, *rows = lines_of(ladder)
    (line,) = [dict(zip(header, row, strict=True)) for row in rows if row[0] == "사내규정"]
    (said,) = made[1][name]["사내규정"]["koir"]["comparisons"]
    assert (line["Gain"], line["p"]) == (f"{said['difference']:+.4f}", f"{said['p']:.4f}")
    assert line["95% interval"] == "{:+.4f} – {:+.4f}".format(*said["interval"])
    assert line["+ reranker"] == f"{value(made[1], name, '사내규정'):.4f}"
    assert line["First stage"] == f"{value(made[1], 'dense-v1.1-demo', '사내규정'):.4f}"
    assert len(lines_of(queries)) - 1 == int(line["Lost"])
    assert lines_of(depths)[0][1:] == ["10", "50"] and len(lines_of(documents)) == 11
    assert "ids stand for texts" in words_of(app)


def test_two_pipelines_are_compared_query_by_query(made, monkeypatch):
    names = {"a": "dense-v1.1-demo+ko@50", "b": "dense-v1.1-demo"}
    app = page(made, monkeypatch, view="compare", on="사내규정", **names)
    (line,) = lines_of(tables_of(app)[0])[1:]
    (said,) = made[1][names["a"]]["사내규정"]["koir"]["comparisons"]
    assert line[1] == f"{said['difference']:+.4f}" and line[3] == f"{said['p']:.4f}"
    assert sum(map(int, line[4:])) == 40
    app.selectbox(key="a").set_value("bm25").run()
    assert not app.exception and app.query_params["a"] == "bm25"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_texts_are_found_in_a_folder_whose_name_macos_took_apart(form, results):
    folder = results.parent / unicodedata.normalize("NFD", "사내규정")
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "출장비는 실비로 준다."}\n', encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "출장비는?"}\n', encoding="utf-8")
    (folder / "qrels/test.tsv").write_text("q1\td1\t1\n", encoding="utf-8")
    path = str(folder.with_name(unicodedata.normalize(form, folder.name)))
    (results / "bm25/run.json").write_text(json.dumps({"tasks": [path]}), encoding="utf-8")
    known = texts.task_of(read_result(results / "bm25/사내규정.json"))
    assert known.queries == {"q1": "출장비는?"}


def test_training_runs_stand_side_by_side(made, monkeypatch):
    app = page(made, monkeypatch, view="training")
    rows = {row[0]: row for row in lines_of(tables_of(app)[0])[1:]}
    assert rows["v1.1-demo"][1:5] == ["complete", "v1.1", "511", "6"]
    assert rows["v1-demo"][1:4] == ["unfinished", "–", "–"]
    assert "1 broken lines of v1-demo/metrics.jsonl" in words_of(app)
    app.multiselect(key="run").set_value(["v1.1-demo"]).run()
    assert len(lines_of(tables_of(app)[0])) == 2 and app.query_params["run"] == "v1.1-demo"


def test_a_link_to_nothing_is_named_on_the_page(results, monkeypatch):
    (results / "bm25/gone.json").symlink_to(results / "nothing")
    assert "gone.json: found no readable JSON" in words_of(page(results.parent, monkeypatch))


def test_a_broken_file_is_named_on_the_page(results, monkeypatch):
    (results / "bm25/사내규정.json").write_text("{", encoding="utf-8")
    app = page(results.parent, monkeypatch)
    assert "bm25/사내규정.json" in words_of(app) and len(lines_of(tables_of(app)[0])) == 5


@pytest.mark.parametrize("view", ["overview", "cost", "pipeline", "compare", "training"])
def test_an_empty_folder_shows_what_to_run(tmp_path, monkeypatch, view):
    (tmp_path / "results").mkdir()
    app = page(tmp_path, monkeypatch, view=view)
    assert ("finetune.sh" if view == "training" else "evaluate.py") in words_of(app)
    assert not app.error


@pytest.mark.parametrize("view", ["overview", "cost", "pipeline", "compare", "training"])
def test_hover_and_buttons_speak_the_pages_words(made, monkeypatch, view):
    app, known = page(made, monkeypatch, view=view, lang="ko"), {*words("ko").values(), *PIPELINES}
    specs = [element.proto.spec for element in app.get("vega_lite_chart")]
    titles = {title for spec in specs for title in _titles(json.loads(spec))}
    assert titles and all(title in known or title.startswith("nDCG@10") or "차이" in title for title in titles)
    labels = [element.proto.label for element in app.get("download_button")]
    assert labels and all(label.endswith(" 내려받기") for label in labels)
    assert all('class="koir-table" lang="ko"' in table for table in tables_of(app))


def _titles(spec):
    """What a chart's hover calls its fields; the field's own name where it has no title."""
    if isinstance(spec, list):
        return [title for one in spec for title in _titles(one)]
    if not isinstance(spec, dict):
        return []
    titles = [title for one in spec.values() for title in _titles(one)]
    if "mark" in spec:  # without a tooltip, or none that is asked for, Streamlit shows every field under its key
        tips = spec["encoding"].get("tooltip", [] if "tooltip" in spec["mark"] else [{"field": "no tooltip"}])
        titles += [tip.get("title", tip["field"]) for tip in tips]
    return titles


def test_a_downloaded_table_says_to_excel_that_it_is_utf8(made, monkeypatch):
    saved = {}
    monkeypatch.setattr(st, "download_button", lambda _, content, name, *__, **___: saved.update({name: content}))
    for view in ("overview", "pipeline"):
        page(made, monkeypatch, view=view)
    assert len(saved) == 7
    assert all(content.startswith(codecs.BOM_UTF8) == name.endswith(".csv") for name, content in saved.items())


def test_the_picture_says_how_many_rows_it_draws(made, monkeypatch):
    assert "rows are drawn" not in words_of(page(made, monkeypatch))
    monkeypatch.setattr(overview, "BARS", 3)
    assert "The first 3 of 4 rows are drawn." in words_of(page(made, monkeypatch))


def test_the_box_over_the_queries_says_what_it_searches(made, monkeypatch):
    app = page(made, monkeypatch, view="pipeline")
    assert app.text_input(key="q").label == "Search by query or id"


def test_a_folder_that_is_not_there_is_named_and_the_advice_writes_into_it(tmp_path, monkeypatch):
    app = page(tmp_path, monkeypatch)
    assert "no such folder" in app.error[0].value and verbatim(f"--results {tmp_path / 'results'}") in words_of(app)
    assert app.code[0].value.endswith(f"evaluate.py --output_dir {tmp_path / 'results'}")


@pytest.mark.parametrize("language, name", [("en", "README.md"), ("ko", "README.ko.md")])
def test_a_language_is_exported_into_its_own_readme(made, tmp_path, monkeypatch, language, name):
    both = [tmp_path / "README.md", tmp_path / "README.ko.md"]
    for readme in both:
        readme.write_text("<!-- leaderboard -->\n<!-- /leaderboard -->\n", encoding="utf-8")
    flags = ["--results", str(made[0] / "results"), "--export", str(tmp_path / "board.md"), "--lang", language]
    monkeypatch.setattr(leaderboard, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", *flags])
    leaderboard.main()
    assert [readme.name for readme in both if "bm25" in readme.read_text(encoding="utf-8")] == [name]


def test_another_programs_flags_do_not_reach_the_page(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "-q", "--results", "/nowhere", "--durations=8"])
    app = AppTest.from_file(str(ROOT / "leaderboard.py"), default_timeout=60).run()
    assert not app.exception and not app.error


def test_the_markdown_has_as_many_cells_in_every_line(made):
    board = read_board(made[0] / "results")
    found, common = standings(board.rows("own"), board.groups["own"], METRIC)
    lines = as_markdown(found, board.groups["own"], common, words("en") | {"name": "a|b"}).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_short_latency_is_no_zero():
    assert [measured(value) for value in (None, 0.04, 0.5, 7.96, 130)] == ["–", "0.04", "0.5", "8.0", "130.0"]


def test_a_query_of_several_lines_stays_in_its_cell():
    assert markdown_table(["질의", "값"], [["첫 줄\n둘째 줄|셋째", "1"]]).splitlines()[2:] == [
        r"| 첫 줄 둘째 줄\|셋째 | 1 |"
    ]


def test_every_word_has_both_languages():
    assert all(len(both) == 2 and all(both) for both in WORDS.values())
    for english, korean in WORDS.values():
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", korean))


def test_the_bases_dev_score_is_not_a_runs_best():
    lines = [{"step": step, "demo/ndcg_at_10": score} for step, score in ((0, 0.9), (2, 0.4), (4, 0.3))]
    assert _summary(TrainingRun("v1", lines, {}, 0))["best"] == {"demo/ndcg_at_10": 0.4}
