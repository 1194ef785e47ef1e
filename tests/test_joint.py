import hashlib
import itertools
import json
import math
import re
import shutil
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_together

import evaluate
from koir.board.texts import task_of
from koir.encoder import load_encoder
from koir.errors import FlagError, ModelError
from koir.evaluation import fitting, joint, reproduction
from koir.evaluation.fitting import GRID, choose_weight
from koir.evaluation.joint import Joint, Settings, sampled
from koir.evaluation.metrics import evaluate_run, mean_ndcg, mean_scores
from koir.evaluation.picture import picture
from koir.evaluation.pipeline import (
    Pipeline,
    candidate_recall,
    evaluate_first_stage,
    is_tied,
    read_pipeline,
    task_fingerprint,
)
from koir.evaluation.report import markdown, terminal, warnings
from koir.evaluation.reranking import final_run, rerank
from koir.evaluation.stored import read_result as read_stored
from koir.evaluation.tasks import Task, load_task
from koir.manifest import write_json
from koir.reranker import load_reranker
from koir.retrieval.ranking import align, ranked


class Fake:
    """A reranker whose logits a function gives, and which remembers what it was asked."""

    def parameters(self):
        return []

    def __init__(self, logit):
        self.logit, self.asked = logit, []

    def score(self, pairs, progress=None, bf16=False, passage_tokens=None):
        self.asked += pairs
        self.bf16 = bf16
        return np.array([self.logit(*pair) for pair in pairs], dtype=np.float32)

    def too_long(self, pairs):
        return 0


@pytest.fixture(scope="module")
def task():
    return sampled(load_task("demo", "dev"), 12)


@pytest.fixture(scope="module")
def reranker_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranker") / "model"
    load_reranker("demo").save(folder)
    return str(folder)


@pytest.fixture
def fake(monkeypatch):
    """Every Joint gets this reranker: the right answers score 1 above the rest, by their texts."""
    oracle = Fake(lambda query, document: float(document in right.get(query, ())))
    right: dict[str, list[str]] = {}
    for split in ("dev", "test"):
        whole = load_task("demo", split)
        right |= {whole.queries[q]: [whole.corpus[d] for d in answers] for q, answers in whole.qrels.items()}
    monkeypatch.setattr(Joint, "reranker", lambda self, path: (oracle, f"fake {path}"))
    return oracle


def run_of(task):
    """Each query's first 30 documents by id, the scores falling."""
    return {
        query: {document: -float(n) for n, document in enumerate(sorted(task.corpus)[:30])} for query in task.queries
    }


# --- reranking -------------------------------------------------------------------------------------------------------


def test_each_pair_is_scored_once_and_only_candidates_are(task):
    reranker = Fake(lambda query, document: len(document))
    run = run_of(task)
    done = rerank(reranker, task, run, [10, 3, 25])
    assert len(reranker.asked) == len(set(reranker.asked)) == 25 * len(task.queries)
    assert all(set(done.logits[q]) == set(ranked(run[q])[:25]) for q in run)  # no right answer is slipped in
    assert done.pairs == {depth: depth * len(task.queries) for depth in (3, 10, 25)}
    assert 0 < done.seconds[3] <= done.seconds[10] <= done.seconds[25] < 60


def test_equal_texts_tie_after_reranking_whatever_the_depths(task):
    twins = replace(task, corpus=dict.fromkeys(sorted(task.corpus)[:30], "같은 글"))
    run, numbers = run_of(twins), itertools.count()
    done = rerank(Fake(lambda *_: next(numbers)), twins, run, [2, 5, 30])
    assert all(len(set(of_query.values())) == 1 for of_query in done.logits.values())
    assert done.pairs == {depth: len(twins.queries) for depth in (2, 5, 30)}


def test_a_constant_reranker_gains_nothing_but_the_order_of_ids(task):
    run = run_of(task)
    done = rerank(Fake(lambda *_: 1.0), task, run, [10])
    final = {q: final_run(run[q], done.logits[q], 10, None, "minmax") for q in run}
    assert all(ranked(final[q]) == sorted(ranked(run[q])[:10], reverse=True) for q in run)
    assert all(is_tied(final[q]) for q in run) and not any(is_tied(run[q]) for q in run)
    by_id = {q: {d: 1.0 for d in ranked(run[q])[:10]} for q in run}
    assert mean_ndcg(task.qrels, final) == mean_ndcg(task.qrels, by_id)


def test_the_mixture_ends_at_both_parts(task):
    first = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
    logits = {"a": -5.0, "b": 0.0, "c": 5.0, "d": 9.0}
    assert list(final_run(first, logits, 3, 0.0, "minmax")) == ["a", "b", "c"]
    assert list(final_run(first, logits, 3, 1.0, "z")) == ["c", "b", "a"]
    assert final_run(first, logits, 3, None, "minmax") == {"a": -5.0, "b": 0.0, "c": 5.0}
    near = {"d": 1.0, "a": 2e-10, "b": 1e-10, "c": -1.0}  # moved to 0 .. 1, a and b would be equal in float32
    assert ranked(final_run(near, dict.fromkeys(near, 0.0), 4, 0.0, "minmax")) == list(near)
    assert final_run(first, logits, 3, 0.25, "raw") == {"a": 1.0, "b": 1.5, "c": 2.0}


def test_the_ceiling_is_the_recall_of_the_candidates():
    qrels = {"q": {"a": 1, "b": 1}, "r": {"c": 2}, "s": {"x": 1}}
    run = {"q": {"a": 3.0, "z": 2.0, "b": 1.0}, "r": {"c": 1.0}}
    assert candidate_recall(qrels, run, 2) == pytest.approx((0.5 + 1 + 0) / 3)
    assert candidate_recall(qrels, run, 3) == pytest.approx(2 / 3)
    assert candidate_recall({"q": {"a": 1}}, {"q": {"z": 1.0, "a": 2.0}}, 1) == 1  # best first, in whatever order


@pytest.mark.parametrize(("equal", "tied"), [(0, True), (9, True), (10, False)])
def test_ids_decide_the_first_ten_where_two_of_the_first_eleven_are_equal(equal, tied):
    scores = [-float(number) for number in range(12)]
    scores[equal + 1] = scores[equal]
    assert is_tied({f"{number:02}": score for number, score in enumerate(scores)}) is tied


# --- weights ---------------------------------------------------------------------------------------------------------


def test_the_weight_is_the_best_on_the_grid_and_the_smallest_of_equals():
    qrels = {"q": {"a": 1}, "r": {"b": 1}}
    good, bad = {"a": 1.0, "b": 0.0, "c": 0.5}, {"a": 0.0, "b": 0.4, "c": 1.0}
    pairs = {"q": align(bad, good), "r": align({"b": 2.0, "a": 1.0}, {"b": 2.0, "a": 1.0})}
    weight, scores = choose_weight([(qrels, pairs)])
    assert list(scores) == list(GRID) and scores[weight] == max(scores.values()) == 1
    assert weight == next(w for w in GRID if scores[w] == 1) < 1
    whole = {q: pairs[q].mixed(weight, 10) for q in qrels}
    assert scores[weight] == mean_scores(evaluate_run(qrels, whole))["ndcg_at_10"]
    assert tuple(step / 20 for step in range(21)) == GRID


def test_a_weight_between_two_runs_that_are_each_wrong_is_found():
    """Of the right answer one run thinks well, the other too, and each better of a wrong one: ten are looked at."""
    first, second = {"a": 0.8, "b": 1.0, "c": 0.0}, {"a": 0.8, "b": 0.0, "c": 1.0}
    between = ({"q": {"a": 1}}, {"q": align(first, second, "raw")})
    weight, scores = choose_weight([between])
    assert (weight, scores[0.0], scores[1.0]) == (0.25, 1 / math.log2(3), 1 / math.log2(3)) and scores[0.25] == 1
    tenth = {f"x{number}": 2.0 for number in range(9)} | {"a": 1.0, "b": 0.0}
    assert choose_weight([({"q": {"a": 1}}, {"q": align(tenth, tenth)})])[1][0.5] == pytest.approx(1 / math.log2(11))


def test_a_gain_on_one_task_is_not_paid_for_by_another():
    right, wrong = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}
    clear, spoilt = ({"q": {"a": 1}}, {"q": align(wrong, right)}), ({"q": {"a": 1}}, {"q": align(right, wrong)})
    gains = [clear, clear, spoilt]  # the mean asks for a weight that turns all three round
    free, _ = choose_weight(gains)
    kept, scores = choose_weight(gains, harmless=True)
    assert (
        kept < free and scores[kept] < scores[free] and spoilt[1]["q"].mixed(kept, 1) == {"a": pytest.approx(1 - kept)}
    )


@pytest.mark.parametrize(("gained", "lost", "chosen"), [(9, 7, 0.0), (10, 6, 0.55), (1, 0, 0.55)])
def test_a_gain_below_one_standard_error_moves_no_first_stage(gained, lost, chosen):
    """Of 16 queries a net gain of 2 has a standard error of 3.97 queries' nDCG, one of 4 has 3.87."""
    qrels = {str(number): {"a": 1} for number in range(16)}
    right, wrong = {"a": 1.0, "b": 0.0, "c": -9.0}, {"a": 0.0, "b": 1.0, "c": -9.0}
    both = [(wrong, right)] * gained + [(right, wrong)] * lost + [(right, right)] * (16 - gained - lost)
    pairs = {query: align(*runs) for query, runs in zip(qrels, both, strict=True)}
    weight = 0.55  # the first at which what is right in one run is first in both
    assert choose_weight([(qrels, pairs)])[0] == weight
    assert choose_weight([(qrels, pairs)], harmless=True)[0] == chosen


def test_several_tasks_have_the_standard_error_of_their_mean():
    """One task's 16 queries gain 4 net, which is more than its own error of 3.87; beside it a task that stays."""
    right, wrong = {"a": 1.0, "b": 0.0, "c": -9.0}, {"a": 0.0, "b": 1.0, "c": -9.0}
    both = [(wrong, right)] * 10 + [(right, wrong)] * 6
    qrels = {str(number): {"a": 1} for number in range(16)}
    moved = qrels, {query: align(*runs) for query, runs in zip(qrels, both, strict=True)}
    still = qrels, {query: align(right, right) for query in qrels}
    for tasks in ([moved], [moved, still], [still, moved, still]):
        assert choose_weight(tasks, harmless=True)[0] == 0.55


def test_of_weights_that_a_standard_error_does_not_tell_apart_the_smallest_is_chosen():
    wrong, right, clear = (
        {"a": 0.0, "b": 1.0, "c": -9.0},
        {"a": 1.0, "b": 0.0, "c": -9.0},
        {"a": 3.0, "b": 0.0, "c": -9.0},
    )
    sure = {"a": 0.0, "b": 3.0, "c": -9.0}
    of_each = [(wrong, clear)] * 8 + [(sure, right)] * 5 + [(clear, wrong)] * 4  # right from 0.3, from 0.75; until 0.7
    qrels = {str(number): {"a": 1} for number in range(len(of_each))}
    pairs = {query: align(*runs) for query, runs in zip(qrels, of_each, strict=True)}
    assert choose_weight([(qrels, pairs)])[0] == 0.75
    assert choose_weight([(qrels, pairs)], harmless=True)[0] == 0.3


def test_a_weight_is_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path))
    assert fitting.remembered(["a"], lambda: (0.3, {0.3: 1.0})) == 0.3
    assert fitting.remembered(["a"], None) == 0.3
    with pytest.raises(TypeError):
        fitting.remembered(["b"], None)


# --- every combination -----------------------------------------------------------------------------------------------


def test_every_combination_is_scored_against_its_own_first_stage(task, fake, tmp_path):
    settings = Settings(["bm25", "hybrid:demo"], ["oracle"], [5, 20], progress=False)
    rows = Joint(settings, [], tmp_path).evaluate(task)
    contents = [row.content for row in rows]
    assert [c["koir"]["name"] for c in contents] == [
        f"{first}{rest}" for first in ("bm25", "hybrid-demo") for rest in ("", "+oracle@5", "+oracle@20")
    ]
    for first, *reranked in (contents[:3], contents[3:]):
        for content, depth in zip(reranked, (5, 20), strict=True):
            koir, (scores,) = content["koir"], content["scores"]["dev"]
            (found,) = koir["comparisons"]
            assert found["metric"] == (metric := f"ndcg_at_{min(depth, 10)}")
            gain = scores[metric] - first["scores"]["dev"][0][metric]
            assert found["against"] == first["koir"]["name"] and found["difference"] == pytest.approx(gain)
            assert found["won"] + found["lost"] + found["tied"] == 12 and found["lost"] == 0 and 0 < found["p"] <= 1
            assert scores["hit_rate_at_10"] == scores["mrr_at_10"]  # what the oracle is given, it puts first
            assert scores["recall_at_10"] == pytest.approx(koir["candidate_recall"])
            assert koir["pipeline"]["depth"] == depth and koir["latency"]["pairs_per_second"] > 0
            assert koir["latency"]["total_ms"] > koir["latency"]["first_stage_ms"]
    assert contents[3]["koir"]["comparisons"][0]["against"] == "bm25"
    assert len(fake.asked) == len(rows[0].run) * 0 + sum(
        min(20, len(r)) for row in (rows[0], rows[3]) for r in row.run.values()
    )
    file = json.loads((tmp_path / "bm25+oracle@20/demo.json").read_text())
    assert file["koir"]["comparisons"] and file["scores"] == contents[2]["scores"]


def test_what_is_scored_beside_a_milvus_names_no_index_there(task, fake, tmp_path):
    settings = Settings(["bm25"], ["oracle"], [5], index_uri=str(tmp_path / "law.db"), progress=False)
    for row in Joint(settings, [], tmp_path).evaluate(task):
        assert row.content["koir"]["pipeline"]["index_uri"] is None  # it lies in the cache
    assert not (tmp_path / "law.db").exists()


def test_bf16_reaches_the_reranker(task, fake, tmp_path):
    for asked in (True, False):
        settings = Settings(["bm25"], ["oracle"], [5], progress=False, bf16=asked)
        Joint(settings, [], tmp_path / str(asked)).evaluate(task)
        assert fake.bf16 is asked


def test_what_is_done_is_not_done_again_but_for_other_weights_or_data(task, fake, tmp_path, monkeypatch):
    settings = Settings(["bm25"], ["oracle"], [5], progress=False)
    first = Joint(settings, [], tmp_path).evaluate(task)
    asked = len(fake.asked)
    again = Joint(settings, [], tmp_path).evaluate(task)
    assert len(fake.asked) == asked
    assert [row.scores for row in again] == [row.scores for row in first] and [r.run for r in again] == [
        r.run for r in first
    ]
    monkeypatch.setattr(Joint, "reranker", lambda self, path: (fake, "other weights"))
    Joint(settings, [], tmp_path).evaluate(task)
    assert len(fake.asked) == 2 * asked
    query = next(iter(task.queries))
    Joint(settings, [], tmp_path).evaluate(replace(task, queries=task.queries | {query: "세금"}))
    assert len(fake.asked) > 2 * asked
    (tmp_path / "bm25+oracle@5/demo.queries.jsonl").write_text('{"que')
    assert len(Joint(settings, [], tmp_path).evaluate(task)) == 2


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"interpolate": 0.5, "normalise": "minmax"}, {"interpolate": 0.5, "normalise": "z"}),
        ({"weight": 0.2, "chosen_on": ["demo/dev"]}, {"weight": 0.75, "chosen_on": ["demo/dev"]}),
        ({"depths": (20,)}, {"depths": (20, 150)}),
    ],
    ids=["scale", "weight", "candidates"],
)
def test_results_of_other_settings_under_one_name_are_not_used_again(first, then, task, fake, tmp_path):
    def runs(settings, folder):
        settings = {"first_stages": ["hybrid:demo"], "rerankers": ["x"], "depths": (20,), "progress": False} | settings
        return [row.run for row in Joint(Settings(**settings), [], tmp_path / folder).evaluate(task)]

    before, after = runs(first, "a"), runs(then, "a")
    assert after == runs(then, "b") != before


def test_a_weight_is_remembered_by_all_that_it_was_chosen_from(task, fake, tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(joint, "remembered", lambda key, choose: keys.append(json.dumps(key)) or 0.3)

    def share(depth=5, stage="hybrid:demo", path="x", dev=task, **settings):
        Joint(Settings([stage], [path], progress=False, **settings), [dev], tmp_path)._chosen_share(stage, path, depth)

    share()
    share()
    assert len(set(keys)) == 1
    for change in ({"depth": 6}, {"stage": "bm25"}, {"path": "y"}, {"dev": sampled(task, 5)}, {"normalise": "z"},
                   {"weight": 0.7}, {"fusion": "rrf"}, {"depths": (150,)}):  # fmt: skip
        share(**change)
    assert len(set(keys)) == 9
    keys.clear()
    for dev in (task, task, sampled(task, 5)):
        Joint(Settings(["hybrid:demo"], weight="auto", progress=False), [dev], tmp_path).stage("hybrid:demo")
    assert keys[0] == keys[1] != keys[2]


def test_a_rerankers_share_alone_must_be_harmless(task, fake, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(joint, "remembered", lambda key, choose: choose()[0])
    monkeypatch.setattr(joint, "choose_weight", lambda tasks, harmless=False: (seen.append(harmless) or 0.3, {}))
    settings = Settings(["hybrid:demo"], ["x"], [5], None, "weighted", "auto", "auto", progress=False)
    Joint(settings, [task], tmp_path).evaluate(task)
    assert seen == [False, True]


def test_shares_are_chosen_on_dev_and_recorded(task, fake, tmp_path):
    settings = Settings(["hybrid:demo"], ["oracle"], [20], None, "weighted", "auto", "auto", progress=False)
    with pytest.raises(FlagError, match="no task with a dev split"):
        Joint(settings, [], tmp_path)
    first, whole, mixed = Joint(settings, [task], tmp_path).evaluate(task)
    names = [row.content["koir"]["name"] for row in (first, whole, mixed)]
    assert names == ["hybrid-demo", "hybrid-demo+oracle@20", "hybrid-demo+oracle@20~mixed"]
    chosen = mixed.content["koir"]["pipeline"]
    assert chosen["weight"] in GRID and chosen["interpolate"] in GRID and chosen["chosen_on"] == ["demo/dev"]
    assert chosen["normalise"] == "minmax" and whole.content["koir"]["pipeline"]["interpolate"] is None
    scores = [row.content["scores"]["dev"][0]["ndcg_at_10"] for row in (first, whole, mixed)]
    assert scores[2] >= max(scores[:2]) - 1e-9  # chosen on what it is scored on here


def test_chosen_weights_are_said_once_and_where_they_are_0(task, fake, tmp_path, monkeypatch, capsys):
    settings = Settings(["hybrid:demo"], ["oracle"], [5, 20], None, "weighted", "auto", "auto", progress=False)
    for weight in (0.35, 0.0):
        monkeypatch.setattr(joint, "remembered", lambda key, choose, weight=weight: weight)
        combined = Joint(settings, [task], tmp_path)
        for name in ("demo", "other"):
            combined.evaluate(replace(task, name=name))
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("weight", "interp", "note"))]
        chosen = [line for line in said if not line.startswith("note")]
        mixed = [f"interpolate: {weight:g} for oracle over hybrid:demo at depth {depth}" for depth in (5, 20)]
        words = [f"weight: {weight:g} for hybrid:demo", *mixed]
        assert chosen == [f"{line}, chosen on demo/dev" for line in words]
        assert len(set(said)) == len(said) == (6 if weight == 0 else 3)
    assert "note: --weight auto is 0: hybrid:demo is BM25 then" in said


def test_a_reranking_tasks_own_candidates_are_ranked(task, fake, tmp_path):
    given = {query: [*answers, *sorted(task.corpus)[:9]] for query, answers in task.qrels.items()}
    fixed = Task("고정", task.split, task.queries, task.corpus, task.qrels, given)
    settings = Settings(["bm25"], ["oracle"], [2, 5], progress=False)
    first, done = Joint(settings, [], tmp_path).evaluate(fixed)
    assert all(set(first.run[q]) == set(done.run[q]) == set(given[q]) for q in given)
    assert done.content["scores"]["dev"][0]["mrr_at_10"] == 1
    assert done.content["koir"]["pipeline"]["depth"] == max(map(len, given.values())) > 5
    asked = len(fake.asked)
    other = replace(fixed, candidates={query: listed[:-1] for query, listed in given.items()})
    assert all(
        set(row.run[q]) == set(given[q][:-1]) for row in Joint(settings, [], tmp_path).evaluate(other) for q in given
    )
    assert len(fake.asked) > asked


def test_more_candidates_than_are_kept_elsewhere_are_all_kept(task, fake, tmp_path):
    given = dict.fromkeys(task.queries, sorted(task.corpus)[:130])
    fixed = replace(task, candidates=given)
    settings = Settings(["bm25"], ["oracle"], [2], progress=False, interpolate="auto")
    for _ in range(2):  # the second time from disk
        rows = Joint(settings, [task], tmp_path).evaluate(fixed)
        assert [len(run) for row in rows for run in row.run.values()] == [130] * 3 * len(given)
    assert len({row.content["koir"]["candidate_recall"] for row in rows}) == 1


def test_given_candidates_are_part_of_the_tasks_fingerprint_and_change_no_others(task):
    made = {task_fingerprint(replace(task, candidates=given)) for given in (None, {"q": ["a"]}, {"q": ["b"]})}
    parts = [task.split, task.queries, task.qrels, task.corpus]
    before = hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    assert len(made) == 3 and task_fingerprint(task) == before


def test_sampled_queries_are_always_the_same():
    whole = load_task("demo", "dev")
    assert list(sampled(whole, 9).queries) == list(sampled(whole, 9).qrels)
    assert len(sampled(whole, 9).queries) == 9 and sampled(whole, 1000).queries == whole.queries
    of_hash = {hashlib.sha256(query.encode()).hexdigest(): query for query in whole.queries}
    chosen = {of_hash[number] for number in sorted(of_hash)[:9]}
    assert list(sampled(whole, 9).queries) == [query for query in whole.queries if query in chosen]


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """The command's tasks have six queries."""
    monkeypatch.setattr(evaluate, "load_task", lambda *of: sampled(load_task(*of), 6))


def test_the_command_writes_tables_pictures_and_pipelines(few, reranker_path, tmp_path, capsys):
    out = tmp_path / "결과"
    words = [
        "--first_stage",
        "bm25",
        "--reranker",
        "none",
        reranker_path,
        "--depth",
        "2",
        "10",
        "--output-dir",
        str(out),
    ]
    contents = evaluate.main([*words, "--interpolate", "0.3", "--json", str(tmp_path / "all.json")])
    assert json.loads((tmp_path / "all.json").read_text()) == json.loads(json.dumps(contents)) and len(contents) == 5
    printed = capsys.readouterr().out
    assert all(content["koir"]["name"] in printed for content in contents) and "won/lost/tied" in printed
    text = (out / "report.md").read_text()
    times = [line.split() for line in printed.partition("\ntime ")[2].splitlines()[2:7]]
    assert "| time | index s | first stage ms/query | reranker ms/query | pairs/s |" in text
    for content, cells in zip(contents, times, strict=True):
        spent = content["koir"]["latency"]
        columns = (spent["index_seconds"], spent["first_stage_ms"], spent["reranker_ms"], spent["pairs_per_second"])
        shown = [f"{number:,.1f}" for number in columns if number is not None]
        assert cells == [content["koir"]["name"], *shown] and f"| {cells[0]} | {shown[0]} | {shown[1]} |" in text
    assert "| ndcg | @1 | @3 | @5 | @10 |" in text and text.count("| bm25 |") >= 7
    xml.dom.minidom.parseString((out / "demo.svg").read_text())
    for content in contents:
        folder = out / content["koir"]["name"]
        assert json.loads((folder / "pipeline.json").read_text()) == content["koir"]["pipeline"]
        assert json.loads((folder / "run.json").read_text())["kind"] == "evaluation"
    mixed = out / contents[-1]["koir"]["name"] / "pipeline.json"
    assert read_pipeline(str(mixed)).interpolate == 0.3
    (first, *_, last) = evaluate.main(["--pipeline", str(mixed), "--output_dir", str(out)])
    assert last["scores"] == contents[-1]["scores"] and first["scores"] == contents[0]["scores"]


def test_without_arguments_the_newest_runs_are_scored_on_the_demo(few, reranker_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_encoder("demo", num_hidden_layers=1).save(tmp_path / "outputs/엔코더/model")
    shutil.copytree(reranker_path, tmp_path / "outputs/reranker-1/model")
    for name, facts in (("엔코더", {"kind": "encoder", "base": "demo"}), ("reranker-1", {"kind": "reranker"})):
        write_json(tmp_path / "outputs" / name / "run.json", facts)
    contents = evaluate.main([])
    names = [stage + rest for stage in ("bm25", "dense-demo", "dense-엔코더", "hybrid-엔코더")
             for rest in ("", "+reranker-1@50")]  # fmt: skip
    assert [content["koir"]["name"] for content in contents] == names
    assert {(content["task_name"], *content["scores"]) for content in contents} == {("demo", "test")}
    assert (tmp_path / "results/report.md").is_file()


def test_without_arguments_or_runs_the_demo_is_scored_and_said_to_be(few, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [content["koir"]["name"] for content in evaluate.main([])]
    stages = ("bm25", "dense-demo", "hybrid-demo")
    assert names == [stage + rest for stage in stages for rest in ("", "+demo@50")]
    assert "default: demo, since outputs/: found no complete encoder run" in capsys.readouterr().err
    names = [content["koir"]["name"] for content in evaluate.main(["--reranker", "none"])]
    assert names == list(stages)


def test_several_processes_build_and_the_first_goes_on_alone(tmp_path):
    words = ["--first_stage", "hybrid:demo", "--index_uri", tmp_path / "indexes", "--output_dir", tmp_path / "results"]
    done = run_together(Path(evaluate.__file__), 2, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "results/hybrid-demo/run.json").is_file() and done.stdout.count("results: ") == 1


def test_several_processes_measure_a_check_in_one_folder(tmp_path):
    content = json.loads((Path(evaluate.__file__).parent / "results/expected/demo.json").read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["model"] == "dense-demo"]
    (tmp_path / "dense.json").write_text(json.dumps(content | {"first_stage": ["dense:demo"], "cells": cells}))
    done = run_together(Path(evaluate.__file__), 2, "--check", tmp_path / "dense.json")
    assert done.returncode == 0 and "3 of 3 cells OK" in done.stdout, done.stderr[-2000:]


HYBRID = ["--first_stage", "hybrid:demo"]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--fusion", "rff"], "--fusion rff"),
        (["--fusion", "rrf", "--weight", "0.5"], "--weight"),
        (["--first_stage", "bm25", "--weight", "0.5"], "--weight"),
        (["--interpolate", "1.5"], "--interpolate 1.5"),
        (["--depth", "0"], "--depth"),
        (["--benchmark", "koe6"], "--benchmark koe6"),
        (["--benchmark", "koe5", "--tasks", "demo"], "--benchmark and --tasks"),
        (["--pipeline", "없다.json"], "--pipeline"),
        (["--pipeline", "x", "--depth", "5"], "--pipeline"),
        (["--first_stage", "bm25", "--interpolate", "0.5"], "--interpolate"),
        (["--first_stage", "bm25", "--passage_tokens", "9"], "--passage_tokens"),
        (["--reranker", "demo", "--passage_tokens", "0"], "--passage_tokens 0"),
        (["--reranker", "none", "--interpolate", "auto"], "--interpolate"),
        (["--reranker", "none", "--passage_tokens", "99"], "--passage_tokens"),
        (["--first_stage", "bm25", "--score_map", "raw"], "--score_map"),
        (["--reranker", "demo", "--normalise", "z"], "--normalise"),
        (["--first_stage", "bm25", "--fusion", "rrf"], "--fusion"),
        ([*HYBRID, "--weight", "0.5", "--dev_tasks", "demo"], "--dev_tasks"),
        ([*HYBRID, "--tolerance", "3"], "--tolerance"),
        ([*HYBRID, "--index_uri", "law.db"], "--index_uri law.db"),
        (["--first_stage", "bm25", "hybird:demo", "--tasks", "없다"], "--first_stage hybird:demo"),
        (["--first_stage", "bm25", "--reranker", "demo", "./없다", "--tasks", "없다"], "./없다"),
        (
            [*HYBRID, "--weight", "auto", "--split", "dev", "--dev_tasks", "demo", "--tasks", "demo"],
            "--split dev --dev",
        ),
        ([*HYBRID, "--tasks", "demo", "demo"], "--tasks"),
        ([*HYBRID, "--reranker", "demo", "--interpolate", "auto", "--split", "dev"], "--split dev"),
        (["--check", "없다.json"], "없다.json"),
        (["--reranking", "x"], "--reranking"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_said_in_one_line(words, place, capsys):
    with pytest.raises(SystemExit) as left:
        evaluate.main(words)
    assert left.value.code == 2 and capsys.readouterr().err.startswith(f"error: {place}")


def test_weights_are_not_chosen_on_what_is_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(joint.__file__).parents[1] / "demo/beir", tmp_path / "mine")
    words = [*HYBRID, "--weight", "auto", "--tasks", "mine"]
    refused = [["--split", "dev", "--dev_tasks", "mine/"], ["--split", "dev", "--dev_tasks", "demo"]]
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    (tmp_path / "other/qrels/test.tsv").write_bytes((tmp_path / "mine/qrels/dev.tsv").read_bytes())
    for more in [*refused, ["--tasks", "other"]]:
        with pytest.raises(SystemExit):
            evaluate.main([*words, *more])
        said = capsys.readouterr().err
        assert re.search(r"^error: --split \w+ --dev_tasks \w+/?: found 80 queries that are scored, of ", said, re.M), (
            said
        )


def test_weights_are_chosen_on_dev_splits_and_on_queries_that_are_not_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    beir = Path(joint.__file__).parents[1] / "demo/beir"
    for name in ("only-test", "again"):
        shutil.copytree(beir, tmp_path / name)
    (tmp_path / "only-test/qrels/dev.tsv").unlink()
    words = [*HYBRID, "--weight", "auto", "--tasks", "demo"]
    with pytest.raises(SystemExit):
        evaluate.main([*words, "--dev_tasks", "only-test"])
    assert "--dev_tasks only-test: found test, train; expected a task with a dev split" in capsys.readouterr().err
    asked = load_task("demo").queries
    scored = sampled(load_task("demo"), 6).queries.values()
    queries = [{"_id": f"again {id}", "text": text} for id, text in asked.items()]
    (tmp_path / "again/queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    lines = [f"again {query}\t{document}\t1\n" for query, of in load_task("demo").qrels.items() for document in of]
    (tmp_path / "again/qrels/dev.tsv").write_text("".join(lines))
    few = lambda path, *of: sampled(load_task(path, *of), 6 if path == "demo" else 999)  # noqa: E731
    monkeypatch.setattr(evaluate, "load_task", few)
    evaluate.main([*words, "--dev_tasks", "again", "--output_dir", "out"])
    assert f"note: {len(set(scored))} queries of again/dev are scored too; nothing is chosen" in capsys.readouterr().err
    pipeline = next(Path("out").glob("hybrid-demo*/pipeline.json"))
    content = json.loads(pipeline.read_text())
    write_json(pipeline, content | {"chosen_on": ["demo/test"]})
    evaluate.main(["--pipeline", str(pipeline), "--output_dir", "out"])
    assert f"note: {pipeline} was chosen on demo/test: its score there is no test" in capsys.readouterr().err


def test_a_list_that_ends_before_ten_is_held_against_the_first_stage_as_far_as_it_reaches(fake, task, tmp_path):
    """A reranker that changes nothing lost whatever stood at ranks 5 to 10."""
    fake.logit = lambda query, document: 0.0
    settings = Settings(["bm25"], ["x"], depths=(4, 10), interpolate=0.0, progress=False)
    rows = [row.content for row in Joint(settings, [], tmp_path).evaluate(task)]
    mixed = [content["koir"] for content in rows if content["koir"]["name"].endswith("~mixed")]
    assert [koir["comparisons"][0]["metric"] for koir in mixed] == ["ndcg_at_3", "ndcg_at_10"]
    assert all(koir["comparisons"][0]["difference"] == 0 and koir["comparisons"][0]["lost"] == 0 for koir in mixed)
    assert "| bm25+x@4~mixed | bm25 | +0.000 @3 |" in markdown([rows])


def test_results_of_ids_with_other_line_ends_are_used_again(fake, task, tmp_path):
    query, *_ = task.queries
    odd = {query: "\u2028".join((query, "x"))}
    parts = [{odd.get(q, q): part[q] for q in part} for part in (task.queries, task.qrels)]
    changed = replace(task, queries=parts[0], qrels=parts[1])
    for _ in "12":
        Joint(Settings(["bm25"], ["x"], depths=(10,), progress=False), [], tmp_path).evaluate(changed)
    assert len(fake.asked) == 10 * len(task.queries)


def test_what_a_result_takes_the_place_of_is_said(fake, task, tmp_path, capsys):
    def evaluated(of, share):
        Joint(Settings(["bm25"], ["x"], interpolate=share, progress=False), [], tmp_path).evaluate(of)
        return capsys.readouterr().err

    assert evaluated(task, 0.2) == evaluated(task, 0.2) == ""
    assert f"note: {tmp_path}/bm25+x@" in (said := evaluated(task, 0.9)) and "was of --interpolate 0.2, and is" in said
    assert evaluated(sampled(task, 5), 0.9).count("of other data under the same name, and is replaced") == 3


def test_a_kill_between_a_results_files_leaves_no_scores_of_another(fake, task, tmp_path, monkeypatch):
    def evaluated(share):
        return Joint(Settings(["bm25"], ["x"], interpolate=share, progress=False), [], tmp_path).evaluate(task)[-1]

    first = evaluated(0.2)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("koir.evaluation.results.write_json", lambda *_: 1 / 0)
        evaluated(0.8)
    again = evaluated(0.2)
    assert again.content["scores"] == first.content["scores"] and again.run == first.run


def test_weights_that_are_given_have_results_of_their_own(task, tmp_path):
    for weight, chosen in ((0.2, None), (0.75, None), (0.75, ["demo/dev"]), (None, None)):
        settings = Settings(["hybrid:demo"], weight=weight, progress=False, chosen_on=chosen)
        Joint(settings, [], tmp_path).evaluate(task)
    kept = sorted(folder.name for folder in tmp_path.iterdir())
    assert kept == ["hybrid-demo", "hybrid-demo-w0.2", "hybrid-demo-w0.75"]


def test_a_result_has_the_name_that_mteb_gives_its_part(task, tmp_path):
    (row,) = Joint(Settings(["bm25"], progress=False), [], tmp_path).evaluate(replace(task, subset="korean"))
    assert row.content["scores"][task.split][0]["hf_subset"] == "korean"


def test_what_is_not_read_to_its_end_is_said_once(task, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "cache"))
    id = next(iter(task.qrels[next(iter(task.queries))]))
    longer = replace(task, corpus=task.corpus | {id: task.corpus[id] * 30})
    for name, tokens in (("beginnings", None), ("passages", 200)):
        settings = Settings(["bm25", "dense:demo"], ["demo"], depths=(50,), passage_tokens=tokens)
        Joint(settings, [], tmp_path / name).evaluate(longer)
        said = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
        if tokens is None:
            assert sum("dense:demo reads 512 tokens of a document; 1 of 280 looked at " in line for line in said) == 1
        assert sum("demo reads 512 tokens of a query and a document; " in line for line in said) == (tokens is None)


def test_passages_leave_room_for_a_question(tmp_path):
    joint = Joint(Settings(["bm25"], ["demo"], passage_tokens=385), [], tmp_path)
    with pytest.raises(
        FlagError, match="--passage_tokens: found 385; expected at most 384, of the 512 that demo reads"
    ):
        joint.reranker("demo")
    fingerprints = {
        Joint(Settings(["bm25"], ["demo"], passage_tokens=tokens), [], tmp_path).reranker("demo")[1]
        for tokens in (None, 100, 384)
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    "wrong",
    [{"first_stage": 5}, {"depth": "x"}, {"depth": 0}, {"weight": "x"}, {"weight": 7}, {"interpolate": 7},
     {"normalise": "foo"}, {"score_map": "foo"}, {"fusion": "both"}, {"chosen_on": "dev"},
     {"passage_tokens": 0}],
    ids=str,
)  # fmt: skip
def test_a_pipeline_with_a_wrong_value_is_refused(wrong, tmp_path):
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps({"first_stage": "bm25"} | wrong))
    (name,) = wrong
    with pytest.raises(FlagError, match=f"pipeline.json, {name}: found "):
        read_pipeline(str(file))


def test_a_key_that_no_pipeline_has_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"first_stage": "bm25", "dept": 3}')
    with pytest.raises(FlagError, match=r"run.json, dept: found an unknown key; .* did you mean depth\?"):
        read_pipeline(str(tmp_path / "run.json"))


def test_a_pipeline_that_is_not_there_is_said_with_the_nearest_name(tmp_path):
    (tmp_path / "pipeline.json").touch()
    with pytest.raises(FlagError, match="found no such file; expected a .*; did you mean pipeline.json?"):
        read_pipeline(str(tmp_path / "pipelin.json"))
    with pytest.raises(FlagError, match="found no such file; expected a pipeline.json that evaluate.py wrote$"):
        read_pipeline(str(tmp_path / "none/pipeline.json"))


def test_splits_have_files_of_their_own_and_a_pipeline_says_what_it_was_chosen_on(few, tmp_path):
    words = ["--first_stage", "hybrid:demo", "--output_dir", str(tmp_path)]
    evaluate.main([*words, "--weight", "auto"])
    evaluate.main([*words, "--split", "dev"])
    assert {file.name for file in (tmp_path / "hybrid-demo").glob("demo*.json")} == {"demo.json", "demo.dev.json"}
    evaluate.main([*words, "--weight", "auto"])
    file = tmp_path / "hybrid-demo/pipeline.json"
    before = read_pipeline(str(file)).chosen_on
    evaluate.main(["--pipeline", str(file), "--output_dir", str(tmp_path)])
    assert read_pipeline(str(file)).chosen_on == before == ["demo/dev"]


def test_a_pipelines_tasks_are_kept_when_another_is_scored(few, tmp_path):
    shutil.copytree(Path(joint.__file__).parents[1] / "demo/beir", tmp_path / "mine")
    for task in ("demo", str(tmp_path / "mine")):
        evaluate.main(["--first_stage", "bm25", "--output_dir", str(tmp_path / "out"), "--tasks", task])
    assert json.loads((tmp_path / "out/bm25/run.json").read_text())["tasks"] == [str(tmp_path / "mine"), "demo"]
    found = [task_of(read_stored(tmp_path / f"out/bm25/{name}.json")) for name in ("demo", "mine")]
    assert all(task.queries for task in found)


def test_a_result_that_was_cut_is_made_again(task, tmp_path):
    joint = Joint(Settings(["bm25"], progress=False), [], tmp_path)
    (whole,) = joint.evaluate(task)
    file = tmp_path / "bm25" / f"{task.name}.queries.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    for damaged in ("".join(rows[:2]), "{}\n" * len(rows)):
        file.write_text(damaged)
        assert joint.evaluate(task)[0].scores == whole.scores and file.read_text() == "".join(rows)
    (tmp_path / "bm25" / f"{task.name}.json").write_text("[]")
    assert joint.evaluate(task)[0].scores == whole.scores


def test_what_loads_with_the_first_query_is_not_a_querys_time(task):
    asked = []

    class Slow:
        def search(self, queries, depth):
            asked.append((len(queries), depth))
            return [{"x": 1.0} for _ in queries]

    evaluate_first_stage(lambda corpus: Slow(), task, Pipeline("slow"))
    assert asked == [(1, 1), (len(task.queries), 100)]
    given = replace(task, candidates=dict.fromkeys(task.queries, ["x"]))
    evaluate_first_stage(lambda corpus: Slow(), given, Pipeline("slow"))
    assert asked[-1] == (len(task.queries), len(task.corpus))  # wherever its candidates stand


def test_models_that_broke_are_no_zeros(task):
    encoder, reranker = load_encoder("demo"), load_reranker("demo")
    for model in (encoder, reranker):
        next(p for name, p in model.named_parameters() if "LayerNorm" in name).data[0] = float("nan")
    with pytest.raises(ModelError, match="embeddings that are not finite"):
        encoder.encode(["연차"], "query")
    with pytest.raises(ModelError, match="logits that are not finite"):
        reranker.score([("연차", "휴가")])


# --- expected and published scores -----------------------------------------------------------------------------------


@pytest.fixture
def measured(task, tmp_path):
    return [row.content for row in Joint(Settings(["bm25", "dense:demo"], progress=False), [], tmp_path).evaluate(task)]


def as_expected(contents):
    """Results as the cells of a file of expected scores."""
    cells = []
    for content in contents:
        ((split, (scores,)),) = content["scores"].items()
        place = {"model": content["koir"]["name"], "task": content["task_name"], "split": split}
        for metric in ("ndcg_at_10", "recall_at_10", "mrr_at_10"):
            cells.append(place | {"metric": metric, "value": round(scores[metric], 5)})
    return cells


def test_cells_are_ok_or_off_by_so_much(measured, tmp_path):
    cells = as_expected(measured)
    cells[0] = cells[0] | {"value": cells[0]["value"] + 0.01}
    file = tmp_path / "expected.json"
    file.write_text(json.dumps({"tolerance": 0.005, "cells": [*cells, cells[1] | {"split": "test"}]}), encoding="utf-8")
    read = reproduction.read_cells(str(file))
    rows = reproduction.compared(read, measured)
    assert [row["ok"] for row in rows] == [False, *[True] * 5] and rows[0]["off"] == pytest.approx(-0.01, abs=1e-5)
    lines = reproduction.lines(rows, read)
    assert "off by -0.0100" in lines[0] and lines[1].endswith("OK") and lines[-1].startswith("5 of 6 cells OK; 1 of 7")
    cells[0] = cells[0] | {"tolerance": 0.02}  # its own, before the file's
    file.write_text(json.dumps({"tolerance": 0.005, "cells": cells}), encoding="utf-8")
    assert all(row["ok"] for row in reproduction.compared(reproduction.read_cells(str(file)), measured))
    assert "1 of splits together" in reproduction.lines([], [cells[1] | {"split": "dev+test"}])[-1]


def test_a_check_measures_what_its_file_names_and_fails_beyond_tolerance(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "cache"))
    content = json.loads((Path(evaluate.__file__).parent / "results/expected/demo.json").read_text(encoding="utf-8"))
    content |= {"first_stage": ["bm25"], "cells": content["cells"][:3]}
    file = tmp_path / "expected.json"
    check = lambda: (file.write_text(json.dumps(content)), evaluate.main(["--check", str(file)]))  # noqa: E731
    check()
    printed = capsys.readouterr().out
    assert "3 of 3 cells OK" in printed and "results: " not in printed
    assert not list(tmp_path.glob("results*")) and not list(tmp_path.rglob("bm25-*")), "measured anew, nothing kept"
    content["cells"].append(content["cells"][0] | {"model": "dense-demo"})
    with pytest.raises(SystemExit) as left:
        check()
    assert left.value.code == 1 and "1 of 4 cells were not measured" in capsys.readouterr().out
    content["cells"][-1] = content["cells"][0] | {"value": 0.9}
    with pytest.raises(SystemExit) as left:
        check()
    assert left.value.code == 1 and "off by -0.81" in capsys.readouterr().out
    evaluate.main(["--check", str(file), "--tolerance", "0.9"])
    for flag, given in (("tasks", "demo"), ("benchmark", "koe5"), ("split", "dev"), ("output_dir", "mine")):
        with pytest.raises(SystemExit):
            evaluate.main(["--check", str(file), f"--{flag}", given])
        assert capsys.readouterr().err.startswith(f"error: --check and --{flag}: found both; expected one of them")


def test_published_tables_are_read_by_hub_name(measured, tmp_path):
    score = measured[1]["scores"]["dev"][0]["ndcg_at_10"]
    block = {
        "source": "x",
        "ndcg_at_10": score,
        "ndcg_at_3": {"value": None, "note": {}},
        "recall_at_10": {"value": 0.99},
    }
    table = {"tasks": {"demo": {"split": "dev"}}, "models": [{"name": "demo", "scores": {"demo": block}}]}
    (tmp_path / "published.json").write_text(json.dumps(table))
    cells = reproduction.read_cells(str(tmp_path / "published.json"))
    assert [row["ok"] for row in reproduction.compared(cells, measured)] == [True, False]


# --- what is printed -------------------------------------------------------------------------------------------------


def test_a_reranker_that_harms_is_named(measured):
    worse = json.loads(json.dumps(measured[0]))
    against = {
        "against": "bm25",
        "difference": -0.2,
        "p": 0.01,
        "won": 0,
        "lost": 5,
        "tied": 7,
        "interval": [-0.3, -0.1],
    }
    worse["koir"] |= {"name": "bm25+나쁜@10", "comparisons": [against]}
    worse["koir"]["pipeline"] |= {"reranker": "나쁜", "depth": 10}
    assert (
        "WARNING: bm25+나쁜@10 is significantly worse than its own first stage on demo (-0.200, p = 0.0100)"
        in terminal([*measured, worse])
    )
    nothing = f"no gain of a reranker over its first stage is significant on demo ({worse['koir']['queries']} queries)"
    assert nothing in terminal([*measured, worse])
    better = json.loads(json.dumps(worse))
    better["koir"]["comparisons"][0]["difference"] = 0.2
    assert nothing not in terminal([better])
    for difference in (0.2, -0.2):  # which may be chance
        better["koir"]["comparisons"][0] |= {"difference": difference, "p": 0.5}
        assert warnings([better]) == [nothing]
    assert "- WARNING: bm25+나쁜@10 is significantly worse" in markdown([[*measured, worse]])
    assert "| bm25+나쁜@10 | bm25 | -0.200 | 0.0100 | 0/5/7 | [-0.300, -0.100] |" in markdown([[*measured, worse]])
    drawn = xml.dom.minidom.parseString(picture([*measured, worse]))
    assert len(drawn.getElementsByTagName("polyline")) == 3
    plus = [json.loads(json.dumps(measured[0])) for _ in "12"]
    for number, content in enumerate(plus, 1):
        content["koir"]["name"] = f"dense-run+hn{number}"
        content["koir"]["pipeline"] |= {"first_stage": f"dense:outputs/run+hn{number}"}
    assert [name in picture(plus) for name in ("dense-run+hn1", "dense-run+hn2")] == [True, True]


def test_names_of_pipelines():
    assert Pipeline("bm25").name == "bm25"
    assert Pipeline("hybrid:demo", fusion="rrf", reranker="a/b", depth=50).name == "hybrid-demo-rrf+a-b@50"
    mixed = Pipeline("hybrid:demo", fusion="weighted", reranker="b", interpolate=0.0)
    assert mixed.name == "hybrid-demo+b@100~mixed"


def test_reranker_fingerprints_tell_weights_apart(reranker_path, tmp_path):
    model = load_reranker(reranker_path)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    model.save(tmp_path / "other")
    both = Joint(Settings(["bm25"], progress=False), [], tmp_path)
    assert both.reranker(reranker_path)[1] != both.reranker(str(tmp_path / "other"))[1]
    file = tmp_path / "cut/tokenizer.json"
    shutil.copytree(reranker_path, file.parent)
    assert both.reranker(reranker_path)[1] == both.reranker(str(file.parent))[1]
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"normalizer": {"type": "NFD"}}))
    assert Joint(both.settings, [], tmp_path).reranker(str(file.parent))[1] != both.reranker(reranker_path)[1]
    half = Joint(Settings(["bm25"], progress=False, bf16=True), [], tmp_path)
    assert half.reranker(reranker_path)[1] != both.reranker(reranker_path)[1]
    assert joint.digest("a") != joint.digest("b")
