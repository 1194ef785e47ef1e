"""scripts/mine_negatives.py: rows with mined negatives, the report, resuming, bad input."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import loaded

from koir.corpus.negatives import Negatives
from koir.mining import Rules, Statistics

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    return loaded("scripts/mine_negatives.py")


def written(folder):
    return [json.loads(line) for file in sorted(folder.glob("part-*.gz")) for line in gzip.open(file, "rt")]


def lines(file, rows):
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def demo(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined") / "demo"
    content = script.main(["--output_dir", str(folder), "--num_negatives", "2", "--rows_per_part", "300"])
    return folder, content


def test_the_demo_gets_negatives_that_are_no_right_answers(demo):
    folder, content = demo
    rows, counts = written(folder), content["counts"]
    right = {}
    for row in rows:
        right.setdefault(row["query"], set()).add(row["document"])
    assert len(rows) == counts["rows"] == 840
    assert sum(len(row["hard_negative"] or []) for row in rows) == counts["chosen"] > 1200
    assert not any(set(row["hard_negative"] or []) & right[row["query"]] for row in rows)
    assert counts["all negatives"] == sum(len(row["hard_negative"] or []) == 2 for row in rows)
    assert sum(content["scores"]["negatives"]) == counts["chosen"]


def test_what_it_writes_is_read_as_training_rows(demo):
    from koir.triplets import load_triplets

    files = [str(file) for file in sorted(demo[0].glob("part-*.gz"))]
    assert len(files) == 3 and load_triplets(files).counts["rows"] == 840


def test_a_run_ends_with_run_json_and_is_not_overwritten(demo, script, tmp_path, capsys):
    folder, content = demo
    run = json.loads((folder / "run.json").read_text())
    assert (run["kind"], run["rows"], run["arguments"]["num_negatives"]) == ("mining", 840, 2)
    assert json.loads((folder / "report.json").read_text()) == content
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}
    again = ["--num_negatives", "2", "--rows_per_part", "300", "--json", str(tmp_path / "report.json")]
    assert script.main(["--output_dir", str(folder), *again]) == content
    assert json.loads((tmp_path / "report.json").read_text()) == content
    assert capsys.readouterr().out.endswith(f"complete already: {folder}\n")
    with pytest.raises(SystemExit):
        script.main(["--output_dir", str(folder)])
    assert "mined with other settings (rules, rows_per_part)" in capsys.readouterr().err
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before


def test_a_killed_run_goes_on_to_the_same_files(demo, script, tmp_path, monkeypatch):
    folder, flags = tmp_path / "again", ["--num_negatives", "2", "--rows_per_part", "300"]
    fill, parts = script.Negatives.fill, []

    def second_fails(self, rows, statistics):
        parts.append(rows)
        if len(parts) == 2:
            raise RuntimeError("killed")
        return fill(self, rows, statistics)

    monkeypatch.setattr(script.Negatives, "fill", second_fails)
    with pytest.raises(RuntimeError, match="killed"):
        script.main(["--output_dir", str(folder), *flags])
    assert [file.name for file in sorted(folder.glob("part-*.gz"))] == ["part-00000.jsonl.gz"]
    assert not (folder / "run.json").exists()
    assert script.main(["--output_dir", str(folder), *flags]) == demo[1]
    assert len(parts) == 4
    for file in sorted(folder.glob("part-*")):
        assert file.read_bytes() == (demo[0] / file.name).read_bytes()


def test_a_folder_of_other_settings_or_other_things_is_refused(script, tmp_path, capsys):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({"rows": "x"}))
    with pytest.raises(SystemExit):
        script.main(["--output_dir", str(folder)])
    assert "mined with other settings (rows" in capsys.readouterr().err
    (folder / "plan.json").rename(folder / "mine.txt")
    with pytest.raises(SystemExit):
        script.main(["--output_dir", str(folder)])
    assert "files of something else" in capsys.readouterr().err


ROWS = [
    {"query": "연차는 며칠인가", "document": ["연차는 해마다 15일이다", "연차 휴가는 열다섯 날이다"], "source": "a"},
    {
        "query": "연차는 며칠인가?",
        "document": "해마다 연차 15일을 준다고 정했다",
        "hard_negative": "연차 규정은 나중에",
    },
    {"query": "숙직 수당은 얼마인가", "document": "숙직 수당은 하루 5만 원이다"},
]
PASSAGES = [
    {"_id": "1", "text": "연차는 팀장에게 신청한다"},
    {"_id": "2", "title": "수당", "text": "식대 수당은 따로 있다"},
]


def mine(script, tmp_path, *flags):
    folder = tmp_path / "out"
    rows, corpus = lines(tmp_path / "rows.jsonl", ROWS), lines(tmp_path / "corpus.jsonl", PASSAGES)
    ratio = [] if "--reranker" in flags else ["--max_ratio", "10"]  # BM25 over so few passages says little
    script.main(["--train_data", rows, "--corpus", corpus, "--output_dir", str(folder), *ratio, *flags])
    return written(folder)


def test_documents_of_all_rows_of_a_query_are_its_answers_and_lists_stay_lists(script, tmp_path):
    rows = mine(script, tmp_path)
    assert [row["document"] for row in rows] == [row["document"] for row in ROWS]
    assert [row["source"] for row in rows] == ["a", None, None]
    negatives = [["연차는 팀장에게 신청한다"]] * 2 + [["수당\n식대 수당은 따로 있다"]]
    assert [row["hard_negative"] for row in rows] == negatives


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("keep", ["연차 규정은 나중에"]),
        ("add", ["연차 규정은 나중에", "연차는 팀장에게 신청한다"]),
        ("replace", ["연차는 팀장에게 신청한다"]),
    ],
)
def test_given_negatives(script, tmp_path, given, expected):
    rows = mine(script, tmp_path, "--given", given)
    assert (rows[0]["hard_negative"], rows[1]["hard_negative"]) == (["연차는 팀장에게 신청한다"], expected)


def test_a_reranker_judges_and_its_logits_are_written(script, tmp_path, monkeypatch):
    class Stub:
        def score(self, pairs, progress):
            return [-1.0 if "팀장" in document else 5.0 for _, document in pairs]

    monkeypatch.setattr(script, "load_reranker", lambda path: Stub())
    first, second, third = mine(script, tmp_path, "--reranker", "any", "--given", "add")
    assert (first["hard_negative"], first["hard_negative_score"]) == (["연차는 팀장에게 신청한다"], [-1.0])
    assert first["document_score"] == [5.0, 5.0] and second["document_score"] == 5.0
    assert second["hard_negative_score"] == [5.0, -1.0]  # the given one is scored too
    assert third["hard_negative"] is third["hard_negative_score"] is None  # all others score as the document does


def filled(row, passage, found, **settings):
    """The row with its mined negatives, where a first stage finds the given scores, and the statistics."""
    negatives, statistics = Negatives([row], "bm25", depth=5, passages=[passage], **settings), Statistics()
    scores = {next(id for id, text in negatives.texts.items() if text == of): score for of, score in found.items()}
    negatives.index = SimpleNamespace(search=lambda queries, depth: [scores for _ in queries])
    (row,) = negatives.fill([row], statistics)
    return row, statistics


def test_a_document_that_the_first_stage_did_not_find_is_judged_too():
    reranker = SimpleNamespace(score=lambda pairs, progress: [5.0 * ("15일" in document) for _, document in pairs])
    row, passage = ROWS[2] | {"document": "하루 15일이다"}, "식대 수당은 따로 있다"
    row, statistics = filled(row, passage, {passage: 1.0}, rules=Rules(margin=1.0), reranker=reranker)
    assert row["hard_negative"] == [passage] and statistics.positives == [5.0]


def test_what_repeats_a_given_negative_is_not_added():
    row, passage = ROWS[2] | {"hard_negative": "식대 수당은 따로 있다"}, "식대 수당은 따로 있다!"
    found = {row["document"]: 9.0, passage: 1.0}
    added, statistics = filled(row, passage, found, rules=Rules(), given="add")
    assert added["hard_negative"] == ["식대 수당은 따로 있다"] and statistics.counts["near-equal"] == 1
    assert filled(row, passage, found, rules=Rules(), given="replace")[0]["hard_negative"] == [passage]


def test_reranker_none_is_no_reranker_as_in_evaluation_and_serving(script):
    asked = script.MiningArguments(reranker="none", max_ratio=0.5)
    assert asked.reranker is None and asked.rules().margin is None and asked.rules().max_ratio == 0.5


def test_scores_that_no_longer_fit_are_left_out_and_counted(script, tmp_path):
    scored = ROWS[1] | {"document_score": 3.5, "hard_negative_score": 1.5}
    flags = ["--train_data", lines(tmp_path / "rows.jsonl", [*ROWS, scored]), "--max_ratio", "10", "--given"]
    for given, scores, counted in (("keep", [1.5], 0), ("replace", None, 1)):
        folder = tmp_path / given
        content = script.main([*flags, given, "--output_dir", str(folder)])
        last = written(folder)[-1]
        assert (last["document_score"], last.get("hard_negative_score")) == (3.5, scores)
        assert content["counts"].get("rows whose scores no longer fit", 0) == counted


def test_scores_stay_where_nothing_was_added(script, tmp_path):
    scored = ROWS[1] | {"hard_negative_score": 1.5}
    flags = ["--train_data", lines(tmp_path / "rows.jsonl", [scored]), "--given", "add"]  # no other passage is there
    content = script.main([*flags, "--output_dir", str(tmp_path / "out")])
    (row,) = written(tmp_path / "out")
    assert (row["hard_negative"], row["hard_negative_score"]) == (["연차 규정은 나중에"], [1.5])
    assert content["counts"].get("rows whose scores no longer fit", 0) == 0


def test_passages_without_text_are_left_out_and_said(script, tmp_path, capsys):
    corpus = lines(tmp_path / "corpus.jsonl", [{"_id": "0", "text": " "}, *PASSAGES])
    words = ["--train_data", lines(tmp_path / "rows.jsonl", ROWS), "--corpus", corpus, "--max_ratio", "10"]
    script.main([*words, "--num_negatives", "9", "--output_dir", str(tmp_path / "out")])
    assert "1 empty ones left out" in capsys.readouterr().out
    assert not [text for row in written(tmp_path / "out") for text in row["hard_negative"] or [] if not text.strip()]


def test_rows_keep_ids_and_documents_that_are_there_again(script, tmp_path, capsys):
    twice = ROWS[0] | {"document_score": [1.0, 2.0], "id": "첫째"}
    given = [twice, twice | {"document_score": [3.0, 4.0]}]
    folder = tmp_path / "my out"
    script.main(["--train_data", lines(tmp_path / "rows.jsonl", given), "--output_dir", str(folder)])
    assert f"rows: '{folder}'/part-*.jsonl.gz" in capsys.readouterr().out
    found = [(row["document"], row["document_score"], row["id"]) for row in written(folder)]
    assert found == [(row["document"], row["document_score"], "첫째") for row in given]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--json", "."], "--json .: found a folder"),
        (["--output_dir", __file__], "found a file"),
        (["--max_ratio", "0.9", "--margin", "1"], "one rule"),
        (["--max_ratio", "95"], "--max_ratio: found 95.0; expected above 0, at most 10 (a share: 0.95 is usual)"),
        (["--depth", "5", "--skip_top", "5"], "--skip_top: found 5, all of --depth 5; expected less than that"),
        (["--depth", "0"], "--depth"),
        (["--first_stage", "bm52"], "did you mean bm25"),
        (["--train_data", "none.jsonl"], "no such file"),
        (["--corpus", "none"], "no such file or folder"),
        (["--num_negative", "3"], "did you mean"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(script, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit):
        script.main(["--output_dir", str(tmp_path / "out"), *flags])
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
