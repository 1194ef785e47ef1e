import gzip
import json
import math
import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from koir.errors import TaskError
from koir.evaluation.metrics import KS, evaluate_run, mean_scores, ndcg
from koir.evaluation.pipeline import Pipeline, evaluate_first_stage
from koir.evaluation.report import SCORE_HEADER, score_row
from koir.evaluation.results import file_name, result, write_result
from koir.evaluation.significance import interval, paired_p
from koir.evaluation.tasks import load_corpus, load_task, splits
from koir.retrieval.bm25 import BM25, K1, LEAD_WORDS, PAIR_WEIGHT, B, character_pairs, lead, terms
from koir.retrieval.morphemes import morphemes
from koir.retrieval.stages import first_stage
from koir.text_tables import terminal_table, width

# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_of_one_query_by_hand():
    qrels = {"휴가": {"a": 2, "b": 1, "c": 1, "없음": 1}}
    run = {"휴가": {"x": 9.0, "a": 8.0, "y": 7.0, "c": 6.0, "z": 5.0, "b": 4.0}}
    found = evaluate_run(qrels, run)["휴가"]
    gained = 2 / math.log2(3) + 1 / math.log2(5)  # a at rank 2, c at rank 4, b at rank 6
    best = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg_at_1"] == 0
    assert found["ndcg_at_3"] == pytest.approx(2 / math.log2(3) / best)
    assert found["ndcg_at_5"] == pytest.approx(gained / (best + 1 / math.log2(5)))
    assert found["ndcg_at_10"] == pytest.approx((gained + 1 / math.log2(7)) / (best + 1 / math.log2(5)))
    assert [found[f"recall_at_{k}"] for k in KS] == [0, 0.25, 0.5, 0.75]
    assert [found[f"precision_at_{k}"] for k in KS] == pytest.approx([0, 1 / 3, 2 / 5, 3 / 10])
    assert [found[f"hit_rate_at_{k}"] for k in KS] == [0, 1, 1, 1]
    assert [found[f"mrr_at_{k}"] for k in KS] == [0, 0.5, 0.5, 0.5]


def random_runs(queries, seed=0):
    """Runs with few distinct scores, so that most candidates are tied, over ids of Hangul, digits and letters."""
    rng = random.Random(seed)
    ids = [f"{letter}{n}" for letter in ("d", "D", "가", "힣", "-") for n in range(8)]
    qrels, run = {}, {}
    for number in range(queries):
        query = f"질문-{number}"
        qrels[query] = {document: rng.choice([1, 1, 2]) for document in rng.sample(ids, rng.randint(1, 6))}
        candidates = rng.sample(ids, rng.randint(1, len(ids)))
        # 0.1 and its neighbours differ in double but not in single precision, in which trec_eval compares
        run[query] = {document: rng.choice([0.1, 0.1 + 1e-12, 0.1 - 1e-12, 0.5, -3.0]) for document in candidates}
    return qrels, run


def test_a_thousand_runs_with_ties_score_as_trec_eval_scores_them():
    qrels, run = random_runs(1000)
    cuts = ".1,3,5,10"
    measures = {"ndcg_cut" + cuts, "recall" + cuts, "P" + cuts, "success" + cuts, "recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    ours = evaluate_run(qrels, run)
    assert list(ours) == list(qrels)
    for query, scores in ours.items():
        for name, trec in (("ndcg", "ndcg_cut"), ("recall", "recall"), ("precision", "P"), ("hit_rate", "success")):
            assert [scores[f"{name}_at_{k}"] for k in KS] == [theirs[query][f"{trec}_{k}"] for k in KS]
        reciprocal = theirs[query]["recip_rank"]
        for k in KS:
            within = reciprocal if reciprocal >= 1 / k - 1e-9 else 0.0
            assert scores[f"mrr_at_{k}"] == pytest.approx(within, abs=1e-12)
    assert sum(scores["mrr_at_10"] > 0 for scores in ours.values()) > 500


def test_a_constant_scorer_is_ranked_by_id_descending():
    documents = [f"문서{n}" for n in range(9)]
    run = {"q": dict.fromkeys(documents, 1.0)}
    assert evaluate_run({"q": {"문서8": 1}}, run)["q"]["mrr_at_10"] == 1
    found = evaluate_run({"q": {"문서0": 1}}, run)["q"]
    assert found["mrr_at_10"] == pytest.approx(1 / 9)
    assert found["ndcg_at_10"] == pytest.approx(1 / math.log2(10)) and found["hit_rate_at_5"] == 0


def test_a_reversed_list_scores_what_trec_eval_gives():
    documents = [f"d{n:02}" for n in range(12)]
    answers = {"d00": 3, "d01": 1}
    forward = {"q": {document: 1 / (n + 1) for n, document in enumerate(documents)}}
    backward = {"q": dict(zip(documents, reversed(forward["q"].values()), strict=True))}
    assert evaluate_run({"q": answers}, forward)["q"]["ndcg_at_10"] == 1
    found = evaluate_run({"q": answers}, backward)["q"]
    assert found["ndcg_at_10"] == found["mrr_at_10"] == found["recall_at_10"] == 0  # ranks 11 and 12


def test_the_order_of_the_runs_keys_does_not_matter():
    qrels, run = random_runs(50, seed=1)
    turned = {query: dict(reversed(candidates.items())) for query, candidates in reversed(run.items())}
    assert evaluate_run(qrels, run) == evaluate_run(qrels, turned)


def test_queries_without_candidates_score_zero_and_count():
    qrels = {"있다": {"a": 1}, "비었다": {"a": 1}, "없다": {"a": 1}}
    scores = evaluate_run(qrels, {"있다": {"a": 1.0}, "비었다": {}})
    assert set(scores["비었다"].values()) == set(scores["없다"].values()) == {0.0}
    assert mean_scores(scores)["ndcg_at_10"] == pytest.approx(1 / 3)
    assert ndcg(qrels, {"있다": {"a": 1.0}, "비었다": {}}).tolist() == [1, 0, 0]


def test_queries_that_nobody_judged_are_left_out():
    assert list(evaluate_run({"q": {"a": 1}}, {"q": {"a": 1.0}, "남": {"a": 1.0}})) == ["q"]


def test_f1_is_of_mean_precision_and_mean_recall():
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"a": 1}}
    scores = evaluate_run(qrels, {"q1": {"a": 2.0, "b": 1.0}, "q2": {"x": 1.0}})
    means = mean_scores(scores)
    precision, recall = (2 / 3 + 0) / 2, (1 + 0) / 2
    assert (means["precision_at_3"], means["recall_at_3"]) == pytest.approx((precision, recall))
    assert means["f1_at_3"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert mean_scores(evaluate_run(qrels, {}))["f1_at_10"] == 0.0
    assert mean_scores(evaluate_run({"q": {"a": 1}}, {"q": {"a": 1.0}}))["f1_at_1"] == 1


# --- significance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0.0, 1.0] * 20, [0.3] * 7, [1.0], np.linspace(0, 1, 300)], ids=len)
def test_an_interval_holds_the_mean_and_is_the_same_each_time(values):
    low, high = interval(values)
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9
    assert 0 <= low <= high <= 1 and (low, high) == interval(list(values))


def test_an_interval_is_as_wide_as_the_normal_one():
    rng, sides = np.random.default_rng(3), []
    for values in rng.random((20, 400)):
        low, high = interval(values)
        normal = 1.96 * values.std() / math.sqrt(400)
        sides.append([(values.mean() - low) / normal, (high - values.mean()) / normal])
    assert np.mean(sides, axis=0) == pytest.approx([1, 1], rel=0.05)


def test_p_is_about_uniform_when_nothing_differs():
    rng = np.random.default_rng(5)
    found = np.array([paired_p(rng.random(40), rng.random(40), seed=n, samples=1000) for n in range(400)])
    for share in (0.05, 0.25, 0.5, 0.75):
        assert abs((found <= share).mean() - share) < 4 * math.sqrt(share * (1 - share) / 400)


def test_p_of_a_clear_difference_is_small_either_way():
    worse = np.random.default_rng(0).random(60) * 0.5
    assert paired_p(worse + 0.3, worse) == paired_p(worse, worse + 0.3) == 1 / 10_001


def test_p_of_identical_systems_is_one():
    assert paired_p([0.2, 0.4, 1.0], [0.2, 0.4, 1.0]) == 1.0
    assert paired_p([0.2, 0.4], [0.2, 0.4], samples=1500) == 1.0


def test_p_of_few_queries_is_that_of_all_signs():
    assert paired_p([1, 1, 1], [0, 0, 0]) == pytest.approx(2 / 8, abs=0.02)
    assert paired_p([1, 1, 1], [0, 0, 0]) == paired_p([1, 1, 1], [0, 0, 0])
    assert paired_p([0.1, 0.2, 0.0, 0.1], [0.0, 0.0, 0.3, 0.0]) == 1  # no signs give less than 0.1, but for rounding


# --- tasks -----------------------------------------------------------------------------------------------------------

CORPUS = [
    {"_id": "d1", "title": "연차", "text": "연차 휴가는 열닷새이다."},
    {"_id": "d2", "text": "퇴직금은 한 달 치."},
]
QUERIES = [{"_id": "q1", "text": "연차는 며칠?"}, {"_id": "q2", "text": "퇴직금은 얼마?"}]
QRELS = {"test": "q1\td1\t1\nq2\td2\t2\n", "dev": "q2\td2\t1\nq1\td1\t0\n"}


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def beir(tmp_path):
    """Write a BEIR folder, any file of which a test may replace."""

    def write(corpus=CORPUS, queries=QUERIES, qrels=QRELS, ending=""):
        folder = tmp_path / "노동법"
        (folder / "qrels").mkdir(parents=True)
        for name, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
            data = rows if isinstance(rows, bytes) else json_lines(rows)
            (folder / f"{name}{ending}").write_bytes(gzip.compress(data) if ending else data)
        for split, text in qrels.items():
            lines = text if isinstance(text, bytes) else f"query-id\tcorpus-id\tscore\n{text}".encode()
            (folder / "qrels" / f"{split}.tsv").write_bytes(lines)
        return str(folder)

    return write


def refused(path, split="test"):
    with pytest.raises(TaskError) as caught:
        load_task(path, split)
    return str(caught.value)


@pytest.mark.parametrize(("split", "queries"), [("train", 840), ("dev", 80), ("test", 200)])
def test_the_demos_splits(split, queries):
    task = load_task("demo", split)
    assert (task.name, task.split, len(task.queries), len(task.qrels)) == ("demo", split, queries, queries)
    assert len(task.corpus) == 280 and splits("demo") == ["dev", "test", "train"]


def test_empty_lines_at_the_end_of_qrels_are_none(beir):
    task = load_task(beir(qrels={"test": QRELS["test"] + "\n\n"}), "test")
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


def test_the_demos_splits_share_no_query():
    texts = [set(load_task("demo", split).queries.values()) for split in splits("demo")]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


@pytest.mark.parametrize("ending", ["", ".gz"], ids=["plain", "gzipped"])
def test_a_beir_folder_is_read(beir, ending):
    task = load_task(beir(ending=ending))
    assert task.name == "노동법" and task.split == "test"
    assert task.queries == {"q1": "연차는 며칠?", "q2": "퇴직금은 얼마?"}
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


def test_a_title_stands_before_its_text_unless_the_text_begins_with_it(beir):
    corpus = [{"_id": "d1", "title": "세금", "text": "부가가치세"}, {"_id": "d2", "title": "연차", "text": "연차 휴가"}]
    assert load_task(beir(corpus=corpus)).corpus == {"d1": "세금\n부가가치세", "d2": "연차 휴가"}


def test_a_corpus_without_documents_is_refused(beir):
    assert refused(beir(corpus=[])).endswith("corpus.jsonl: found no documents; expected at least one")


def test_queries_without_a_right_answer_in_the_split_are_left_out(beir):
    task = load_task(beir(), "dev")
    assert task.queries == {"q2": "퇴직금은 얼마?"} and task.qrels == {"q2": {"d2": 1}}


def test_decomposed_text_becomes_composed_and_ids_stay(beir):
    nfd = unicodedata.normalize("NFD", "퇴직금")
    corpus = [{"_id": nfd, "title": nfd, "text": f"{nfd}은"}, CORPUS[0]]
    path = beir(corpus=corpus, qrels={"test": f"q1\t{nfd}\t1\n", "dev": "q1\t퇴직금\t1\n"})
    task = load_task(path)
    assert task.corpus[nfd] == "퇴직금은" and task.qrels == {"q1": {nfd: 1}}
    assert load_task(path, "dev").qrels == task.qrels, "the same id"


def test_ids_that_are_whole_numbers_are_texts(beir):
    task = load_task(beir(corpus=[{"_id": 7, "text": "연차"}], qrels={"test": "q1\t7\t1\n"}))
    assert task.qrels == {"q1": {"7": 1}} and list(task.corpus) == ["7"]


def test_a_pair_with_two_grades_is_refused_and_the_same_grade_twice_is_not(beir):
    path = beir(qrels={"dev": "q1\td1\t1\nq1\td1\t1\n", "test": "q1\td1\t1\nq2\td2\t1\nq1\td1\t2\n"})
    assert load_task(path, "dev").qrels == {"q1": {"d1": 1}}
    said = f"{path}/qrels/test.tsv, line 4: found grade 2 for 'q1' and 'd1'; expected 1, as in line 2"
    assert refused(path) == said


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["no BOM", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("header", [b"query-id\tcorpus-id\tscore", None], ids=["header", "no header"])
def test_bom_line_ends_and_header_do_not_matter(beir, start, end, header):
    lines = [*([header] if header else []), b"q1\td1\t1", b"q2\td2\t2", b""]
    corpus = start + json_lines(CORPUS).replace(b"\n", end)
    task = load_task(beir(corpus=corpus, qrels={"test": start + end.join(lines)}))
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}} and list(task.corpus) == ["d1", "d2"]


def test_empty_lines_at_the_end_gzipped_qrels_and_grades_as_floats_do_not_matter(beir, tmp_path):
    qrels = {"test": "q1\td1\t1.0\nq2\td2\t2.0\n", "dev": "q2\td2\t1\n"}
    path = beir(corpus=json_lines(CORPUS) + b"\n \n", qrels=qrels)
    plain = tmp_path / "노동법/qrels/test.tsv"
    (tmp_path / "노동법/qrels/test.tsv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    task = load_task(path)
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}} and list(task.corpus) == ["d1", "d2"]
    assert splits(path) == ["dev", "test"]
    damaged = tmp_path / "노동법/qrels/test.tsv.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert refused(path).startswith(f"{damaged}: found broken text (")


def test_quotes_in_ids_are_letters_like_others(beir):
    queries = [{"_id": '"q1', "text": "연차는?"}]
    assert load_task(beir(queries=queries, qrels={"test": '"q1\td1\t1\n'})).qrels == {'"q1': {"d1": 1}}


def test_a_task_whose_folder_another_system_named(beir, tmp_path):
    whole = tmp_path / "사내 규정"
    Path(beir()).rename(unicodedata.normalize("NFD", str(whole)))
    for form in ("NFC", "NFD"):
        path = unicodedata.normalize(form, str(whole))
        assert load_task(path).name == "사내 규정" and splits(path) == ["dev", "test"] and load_corpus(path)


def test_a_task_without_qrels_is_told_what_they_are(beir):
    path = beir()
    shutil.rmtree(f"{path}/qrels")
    assert (
        refused(path) == f"{path}: found no qrels/*.tsv; expected "
        "qrels/test.tsv (or another split's): query-id, corpus-id and score"
    )


def test_a_missing_split_names_what_is_there(beir):
    path = beir()
    assert (
        refused(path, "train")
        == f"{path}: found no split 'train' (there are: dev, test); expected qrels/train.tsv, or a split that is there"
    )


def test_a_missing_folder_is_refused_with_the_nearest_name(beir):
    path = beir()
    assert (
        refused(path + "전")
        == f"task {path}전: found no such folder; expected a BEIR folder, demo or an mteb task; did you mean 노동법?"
    )


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_folder_without_one_of_its_files_is_refused(beir, tmp_path, name):
    path = beir()
    (tmp_path / "노동법" / name).unlink()
    assert refused(path).startswith(f"{path}: found no {name} or {name}.gz; expected a BEIR folder")


BROKEN = {
    "cut short": (b'{"_id": "d9', "broken JSON or UTF-8 ("),
    "CP949": ('{"_id": "d9", "text": "연차"}'.encode("cp949"), "broken JSON or UTF-8 ("),
    "blank": (b"", "an empty line; expected one JSON object a line"),
    "a list": (b'["d9"]', "list; expected {"),
    "duplicate id": ('{"_id": "d1", "text": "또"}'.encode(), "_id 'd1' again; expected each _id once"),
}


@pytest.mark.parametrize(("line", "found"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("ending", ["", ".gz"], ids=["plain", "gzipped"])
def test_a_broken_line_names_file_and_line(beir, line, found, ending):
    path = beir(corpus=json_lines(CORPUS) + line + b"\n" + json_lines([{"_id": "d5", "text": "끝"}]), ending=ending)
    assert refused(path).startswith(f"{path}/corpus.jsonl{ending}, line 3: found {found}")


def test_a_title_must_be_a_text(beir):
    path = beir(corpus=[*CORPUS, {"_id": "d3", "title": 3, "text": "연차"}])
    assert refused(path) == f"{path}/corpus.jsonl, line 3, field title: found int; expected a text"


def test_a_corpus_that_is_a_table_is_told_what_it_is_to_be(tmp_path):
    (tmp_path / "규정.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(TaskError, match=r"규정.xlsx: found an unknown ending; expected .jsonl or .jsonl.gz, lines of"):
        load_corpus(str(tmp_path / "규정.xlsx"))


def test_a_truncated_gzip_is_refused(beir, tmp_path):
    path = beir(ending=".gz")
    file = tmp_path / "노동법/corpus.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-12])
    message = refused(path)
    assert message.startswith(f"{file}, after line ") and message.endswith("expected a complete file")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("q9\td1\t1\n", "query 'q9'; expected an _id of queries.jsonl"),
        ("q1\td9\t1\n", "document 'd9'; expected an _id of"),
    ],
)
def test_an_unknown_id_is_refused(beir, line, found):
    path = beir(qrels={"test": QRELS["test"] + line})
    assert refused(path).startswith(f"{path}/qrels/test.tsv, line 4: found {found}")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"_id": "d9"}, "field text: found nothing among _id; expected a text"),
        ({"id": "d9", "text": "연차"}, "field _id: found nothing among id, text; expected a text"),
        ({"_id": True, "text": "연차"}, "field _id: found bool; expected a text"),
        ({"_id": "d9", "text": ["연차"]}, "field text: found list; expected a text"),
    ],
)
def test_a_field_that_is_no_text_is_named(beir, row, said):
    path = beir(corpus=[*CORPUS, row])
    assert refused(path) == f"{path}/corpus.jsonl, line 3, {said}"


@pytest.mark.parametrize(
    "line", ["q1\td1\n", "q1 d1 1\n", "q1\td1\t참\n", "q1\td1\t0.5\n", "q1\t0\td1\t1\n", "\nq1\td1\t1\n"]
)
def test_a_broken_line_of_qrels_names_file_and_line(beir, line):
    path = beir(qrels={"test": QRELS["test"] + line})
    message = refused(path)
    assert message.startswith(f"{path}/qrels/test.tsv, line 4: found ")
    assert message.endswith("; expected query-id, corpus-id and a whole number")


@pytest.mark.parametrize("text", ["", "q1\td1\t0\n"], ids=["header alone", "wrong answers alone"])
def test_a_split_without_right_answers_is_refused(beir, text):
    assert "found no right answers; expected at least one line" in refused(beir(qrels={"test": text}))


def test_broken_utf8_in_qrels_is_refused(beir):
    path = beir(qrels={"test": "질문\td1\t1\n".encode("cp949")})
    assert refused(path).startswith(f"{path}/qrels/test.tsv: found broken text (")


def test_a_grade_with_two_hyphens_is_refused(beir):
    assert "line 4" in refused(beir(qrels={"test": QRELS["test"] + "q1\td2\t--1\n"}))


def test_half_of_a_surrogate_pair_is_refused(beir):
    path = beir(corpus=json_lines(CORPUS) + b'{"_id": "d3", "text": "\\ud83d"}\n')
    assert "corpus.jsonl, line 3" in refused(path)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated():
    return evaluate_first_stage(first_stage("bm25"), load_task("demo", "dev"), Pipeline("bm25"))


def test_a_result_is_of_mtebs_shape_with_a_block_of_ours(evaluated, tmp_path):
    task = load_task("demo", "dev")
    file = write_result(tmp_path / "bm25", evaluated.content, evaluated.run, task.qrels)
    assert file == tmp_path / "bm25/demo.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    assert set(content) == {
        "task_name", "dataset_revision", "mteb_version", "evaluation_time", "scores", "koir"
    }  # fmt: skip
    (row,) = content["scores"]["dev"]
    assert (row["hf_subset"], row["languages"]) == ("default", ["kor-Hang"])
    assert row["main_score"] == row["ndcg_at_10"] > 0
    assert {f"{name}_at_{k}" for name in ("ndcg", "recall", "precision", "mrr", "hit_rate", "f1") for k in KS} < set(
        row
    )
    ours = content["koir"]
    pipeline = {"first_stage": "bm25", "reranker": None, "depth": 100}
    assert {key: ours["pipeline"][key] for key in pipeline} == pipeline and ours["name"] == "bm25"
    assert ours["candidate_recall"] >= row["recall_at_10"] and ours["comparisons"] == []
    assert (ours["queries"], ours["documents"], len(ours["task_fingerprint"])) == (80, 280, 64)
    assert ours["milliseconds_per_query"] > 0
    for name, (low, high) in ours["intervals"].items():
        assert low <= row[name] <= high


def test_per_query_rows_hold_ids_and_scores_and_no_texts(evaluated, tmp_path):
    task = load_task("demo", "dev")
    write_result(tmp_path, evaluated.content, evaluated.run, task.qrels, top=7)
    text = (tmp_path / "demo.queries.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["query_id"] for row in rows] == list(task.qrels)
    for row in rows:
        assert set(row) == {"query_id", "relevant", "top", "scores"}
        assert len(row["top"]) == len(row["scores"]) <= 7 and row["scores"] == sorted(row["scores"], reverse=True)
        assert row["relevant"] == sorted(task.qrels[row["query_id"]])
    assert not any(query in text for query in task.queries.values())


def test_a_query_without_candidates_has_a_row_too(tmp_path):
    qrels = {"빈": {"가": 1}, "찬": {"나": 1}}
    run = {"찬": {"나": 1.0, "다": 1.0}}
    content = result("노동법", "test", evaluate_run(qrels, run), 1.0, {"task_fingerprint": "0"})
    write_result(tmp_path, content, run, qrels)
    lines = (tmp_path / "노동법.queries.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"query_id": "빈", "relevant": ["가"], "top": [], "scores": []}'
    assert json.loads(lines[1])["top"] == ["다", "나"]  # a tie: by id, descending, as it was scored


def test_grades_are_written_where_not_all_are_1(tmp_path):
    qrels = {"같다": {"나": 2, "가": 2}, "하나": {"가": 1}, "다르다": {"나": 1, "가": 3}}
    content = result("노동법", "test", evaluate_run(qrels, {}), 1.0, {"task_fingerprint": "0"})
    write_result(tmp_path, content, {}, qrels)
    lines = (tmp_path / "노동법.queries.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("grades") for line in lines] == [[2, 2], None, [3, 1]]  # relevant: 가, 나


def test_the_same_task_gives_the_same_scores_and_fingerprint(beir):
    path = beir()
    once, again, other = (
        evaluate_first_stage(first_stage("bm25"), load_task(path, split), Pipeline("bm25"))
        for split in ("test", "test", "dev")
    )
    assert again.scores == once.scores and again.run == once.run
    assert again.content["dataset_revision"] == once.content["koir"]["task_fingerprint"]
    assert other.content["dataset_revision"] != once.content["dataset_revision"]


def test_a_table_lines_up_with_hangul(evaluated):
    scores = [score_row(name, evaluated.content) for name in ("bm25", "한국어 모델")]
    header, rule, *rows = terminal_table(SCORE_HEADER, scores).splitlines()
    assert (
        rule.startswith("-" * 11 + "  ")
        and rows[1].startswith("한국어 모델  ")
        and rows[0].startswith("bm25" + " " * 9)
    )
    assert {width(line) for line in (header, rule, *rows)} == {width(rule)}


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("한글", 4), ("（주）", 6), ("a한", 3), ("", 0)])
def test_hangul_is_two_columns_wide(text, columns):
    assert width(text) == columns


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        ("bm25", "bm25"),
        ("dense:demo", "dense-demo"),
        ("dense:outputs/v1.1-demo", "dense-v1.1-demo"),
        ("dense:outputs/v1.1-demo/", "dense-v1.1-demo"),
        ("dense:./outputs/v1.1-demo/model", "dense-v1.1-demo"),
        ("dense:intfloat/multilingual-e5-small", "dense-intfloat-multilingual-e5-small"),
        ("dense:../모델/한국어", "dense-모델-한국어"),
    ],
)
def test_a_pipelines_folder_name(pipeline, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "v1.1-demo" / "model").mkdir(parents=True)
    assert file_name(pipeline) == name


def test_folders_of_one_name_that_lie_elsewhere_do_not_share_results(tmp_path):
    folders = [tmp_path / where / "run" for where in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    names = {file_name(f"dense:{folder}") for folder in folders}
    assert len(names) == 2 and all(name.startswith("dense-run-") for name in names)


@pytest.mark.parametrize(("other", "run", "kept"), [("demo", "demo", "demo"), ("a/b", "a-b", "outputs/a-b")])
def test_a_run_shares_no_results_with_what_would_be_called_as_it_is(other, run, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / run / "model").mkdir(parents=True)
    names = {path: file_name(f"dense:{path}") for path in (other, f"outputs/{run}")}
    assert names[kept] == f"dense-{run}" and len(set(names.values())) == 2


def test_a_run_that_is_called_as_a_pipeline_shares_no_results_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("run", "run-rrf", "run+r@50"):
        (tmp_path / "outputs" / run / "model").mkdir(parents=True)
    fused = Pipeline("hybrid:outputs/run", fusion="rrf").name
    assert (fused, Pipeline("hybrid:outputs/run").name) == ("hybrid-run-rrf", "hybrid-run")
    assert Pipeline("hybrid:outputs/run-rrf").name.startswith("hybrid-run-rrf-")
    assert Pipeline("dense:outputs/run+r@50").name != Pipeline("dense:outputs/run", reranker="r", depth=50).name


# --- BM25 ------------------------------------------------------------------------------------------------------------

LAW = {
    "계약": "근로계약서를 만들어 근로자에게 내주어야 한다.",
    "휴가": "한 해를 일하면 연차 휴가를 받는다.",
    "임금": "임금은 매달 정한 날에 준다.",
    "세금": "부가가치세를 신고한다.",
}


@pytest.fixture(scope="module")
def law():
    return BM25(LAW)


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("근로계약서는 언제 만듭니까?", "계약"),
        ("휴가를 받았는데요", "휴가"),
        ("임금이 밀렸어요", "임금"),
        ("세금 신고했나", "세금"),
    ],
)
def test_an_inflected_query_finds_its_document(law, query, document):
    (found,) = law.search([query], 4)
    assert next(iter(found)) == document


def test_particles_endings_and_verbs_are_no_words():
    assert morphemes(["휴가를 받았습니다.", "휴가는 받으면"]) == [["휴가"], ["휴가"]]


def test_bm25_is_deterministic(law):
    queries = ["휴가와 임금", "근로자", "한 해 세금"]
    assert law.search(queries, 4) == BM25(LAW).search(queries, 4) == [law.search([q], 4)[0] for q in queries]


def lucene(query, texts):
    """BM25 of a query's terms in each text, written out."""
    mean, scores = sum(map(len, texts)) / len(texts), []
    for text in texts:
        score = 0.0
        for term in query:
            holders = sum(term in other for other in texts)
            rarity = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
            score += rarity * text.count(term) / (text.count(term) + K1 * (1 - B + B * len(text) / mean))
        scores.append(score)
    return scores


def test_scores_are_lucenes_bm25_of_morphemes_and_of_pairs_with_leads_twice(law):
    query, texts = "근로자는 한 해에 휴가를 받는다", list(LAW.values())
    twice = [
        words + of_lead for words, of_lead in zip(morphemes(texts), morphemes(list(map(lead, texts))), strict=True)
    ]
    of_words = lucene(morphemes([query])[0], twice)
    of_pairs = lucene(character_pairs(query), [character_pairs(f"{text} {lead(text)}") for text in texts])
    both = [words + PAIR_WEIGHT * pairs for words, pairs in zip(of_words, of_pairs, strict=True)]
    expected = {name: score for name, score in zip(LAW, both, strict=True) if score}
    assert len(expected) >= 2 and law.search([query], 4)[0] == pytest.approx(expected, rel=1e-5)


def test_what_a_document_begins_with_counts_more():
    other = " ".join(f"글{number}" for number in range(LEAD_WORDS))
    index = BM25({"a": f"{other} 연차", "b": f"연차 {other}", "c": "예산"})
    assert list(index.search(["연차"], 3)[0]) == ["b", "a"]
    assert lead(" 하나\n둘  셋 ") == "하나 둘 셋"
    assert lead(f"{other} 연차") == other


def test_pairs_of_characters_keep_to_their_word():
    assert character_pairs("연차는 A4, 😀") == [f"\t{pair}" for pair in (" 연", "연차", "차는", " a", "a4")]
    assert character_pairs(unicodedata.normalize("NFD", "연차")) == ["\t 연", "\t연차"]
    assert not character_pairs(" .\ud83d")
    assert terms(["휴가를"]) == [["휴가", "\t 휴", "\t휴가", "\t가를"]]  # the morpheme is not the pair


def test_a_word_that_is_cut_otherwise_is_still_found():
    index = BM25({"a": "뽀로로빠방놀이터 개장", "b": "예산"})
    assert list(index.search(["빠방놀이"], 2)[0]) == ["a"]


@pytest.mark.parametrize("texts", [["", "!!"], ["이것은", "!!"], ["😀", ""]])
def test_a_corpus_without_words_is_indexed_and_kept(texts, tmp_path):
    index = BM25(dict(zip("ab", texts, strict=True)))
    index.save(tmp_path)
    for query in ("이것", "", "😀"):
        assert BM25.load(tmp_path).search([query], 2) == index.search([query], 2)
    assert bool(index.search(["이것"], 2)[0]) == ("이것은" in texts)


def test_ties_are_broken_by_id_descending():
    index = BM25({name: "연차 휴가" for name in ("a", "나", "B", "c", "가")} | {"x": "임금"})
    (found,) = index.search(["휴가"], 3)
    assert list(found) == ["나", "가", "c"] and len(set(found.values())) == 1


def test_documents_without_a_common_word_are_left_out(law):
    assert law.search(["임금"], 4)[0].keys() == {"임금"}
    assert law.search(["우주선"], 4) == [{}]


def test_depth_bounds_the_candidates():
    index = BM25({str(n): f"휴가 {'임금 ' * n}" for n in range(20)})
    assert len(index.search(["휴가"], 5)[0]) == 5


@pytest.mark.parametrize(
    "query", ["", " \n", "\0", "😀", "?!", "\u200b", "\ud83d", "ㅋㅋㅋ", "가" * 3000], ids=range(9)
)
def test_odd_queries_find_nothing_and_break_nothing(law, query):
    assert law.search([query, "임금"], 2)[1].keys() == {"임금"}


def test_decomposed_queries_and_nul_characters_find_what_composed_ones_find(law):
    plain, decomposed, broken = law.search(["휴가", unicodedata.normalize("NFD", "휴가"), "휴가\0"], 2)
    assert plain == decomposed == broken != {}


def test_odd_documents_break_nothing():
    odd = {
        "빈": "",
        "널": "\0",
        "그림": "😀😀",
        "반쪽": "\ud83d",
        "점": "...",
        "분해": unicodedata.normalize("NFD", "휴가"),
    }
    (found,) = BM25(LAW | odd).search(["휴가"], 10)
    assert set(found) == {"휴가", "분해"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("corpus", [{"a": "", "b": "..."}, {}], ids=["no words", "no documents"])
def test_a_corpus_without_words_finds_nothing(corpus):
    assert BM25(corpus).search(["휴가"], 3) == [{}]
