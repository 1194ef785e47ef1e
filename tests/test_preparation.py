"""From downloads to a folder of rows: the command, resuming, reports, what `datasets` and training read."""

import contextlib
import io
import json
import os
import re
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import commands
import datasets
import pytest

from koir.corpus import preparation, report
from koir.corpus.preparation import content_key
from koir.corpus.shards import Shape
from koir.evaluation.tasks import load_task
from koir.manifest import DEMO, alone
from koir.sources import general
from koir.triplets import load_triplets

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import prepare_data  # noqa: E402

FIRST = ["한강은 서울을 가로질러 흐른다.", "한라산은 제주도에 있는 화산이다.", "경복궁은 조선의 으뜸 궁궐이다."]
LAST = ["김치는 배추를 절여 담근다.", "두부는 콩을 갈아 굳힌 먹거리다.", "떡국은 설날에 먹는 음식이다."]


def rows_file(file, documents, **more):
    rows = [{"query": f"{text[:4]} 무엇인가요", "document": text, **more} for text in documents]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def given(tmp_path):
    """Two files of rows: plain ones, and ones with lists of hard negatives."""
    rows_file(tmp_path / "first.jsonl", FIRST, source="first")
    rows_file(tmp_path / "last.jsonl", LAST, source="last", hard_negative=["하늘은 푸르다.", "바다는 넓다."])
    return [f"triplets={tmp_path / 'first.jsonl'}", f"triplets={tmp_path / 'last.jsonl'}"]


def run(*words):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        content = prepare_data.main([*map(str, words)])
    return content, said.getvalue()


def fails(*words):
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    return said.getvalue()


def read(folder):
    return [row for file in sorted(folder.glob("train-*")) for row in preparation.read_rows(file)]


def test_a_folder_of_rows_its_reports_and_who_reads_it(given, tmp_path):
    out = tmp_path / "rows"
    content, said = run("--source", given[0], "--source", given[1], "--output-dir", out, "--shard_rows", 4)
    names = ["README.md", "lengths.svg", "report.json", "report.md", "run.json"]
    shards = ["train-00000-of-00002.jsonl.gz", "train-00001-of-00002.jsonl.gz"]
    assert sorted(file.name for file in out.iterdir()) == sorted([*names, *shards])
    assert [row["document"] for row in read(out)] == FIRST + LAST
    assert [row["hard_negative"] for row in read(out)][2:4] == [None, ["하늘은 푸르다.", "바다는 넓다."]]
    assert (content["rows"], content["pairs"], content["rows_without_hard_negative"]) == (6, 6, 3)
    assert "rows without a hard negative: 3" in said and "| triplets | 3 |  | 0 | 3 | 0 | 3 | train 3 |" in said
    assert {f["family"]: f["rows"] for f in content["families"]}["General"] == 6
    assert content["families"][-1] == {
        "family": "all of KoE5's", "rows": 0, "koe5": 723_428, "difference": -723_428}  # fmt: skip
    written = (out / "report.md").read_text(encoding="utf-8")
    for part in (
        "Rows beside KoE5's",
        "What was dropped",
        "| first | 3 |",
        "### last\n\n- query:",
        "lengths.svg",
        "as you got it",
    ):
        assert part in written
    ElementTree.parse(out / "lengths.svg")
    facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert facts["fingerprint"] == content["fingerprint"] and facts["wall_seconds"] > 0
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded[0]["hard_negative"] is None and loaded[5]["hard_negative"] == ["하늘은 푸르다.", "바다는 넓다."]
    triplets = load_triplets([str(out / name) for name in shards])
    assert triplets.counts["sources"] == {"first": 3, "last": 3}


def test_what_a_download_lacks_and_what_is_not_opened_is_said(tmp_path):
    rows_file(tmp_path / "in/rows.jsonl", FIRST)
    (tmp_path / "in/더.7z").touch()
    (tmp_path / "in/more.zip.001").touch()
    content, said = run("--source", f"triplets={tmp_path / 'in'}", "--output_dir", tmp_path / "rows")
    assert "note: triplets: an archive that is not opened (unpack it): more.zip.001\n" in said
    assert "an archive that is not opened (unpack it): 더.7z" in (tmp_path / "rows/report.md").read_text(
        encoding="utf-8"
    )
    assert content["rows"] == 3


def test_columns_and_fields_that_are_not_read_are_said_and_reported(tmp_path):
    table = "질문,답변,틀린 답,오답\n연차는 며칠인가요,열닷새를 줍니다.,모릅니다.,한 달입니다.\n"
    (tmp_path / "faq.csv").write_text(table, encoding="utf-8")
    rows_file(tmp_path / "rows.jsonl", FIRST, hard_negatives=["다른 글입니다."], note="")
    content, said = run("--source", f"csv={tmp_path / 'faq.csv'}", f"triplets={tmp_path / 'rows.jsonl'}",
                        "--output_dir", tmp_path / "rows")  # fmt: skip
    for source, name, count in (("csv", "틀린 답", 1), ("triplets", "hard_negatives", 3), ("triplets", "note", 3)):
        assert f"note: {source}: not read: the column {name!r} ({count} records have it)\n" in said
    assert content["sources"][0]["notes"] == {"not read: the column '틀린 답'": 1}
    assert [row["hard_negative"] for row in read(tmp_path / "rows")] == ["한 달입니다.", None, None, None]
    assert "KoE5" not in said, "whose families have no rows here"


def test_a_table_with_other_marks_between_its_cells_is_told(tmp_path):
    (tmp_path / "faq.csv").write_text("질문;답변\n연차는;열닷새\n", encoding="utf-8")
    said = fails("--source", f"csv={tmp_path / 'faq.csv'}", "--output_dir", tmp_path / "rows")
    assert "row 1: found ';' between the cells of '질문;답변'; expected commas (.tsv: tabs)" in said


def test_what_is_printed_for_pasting_is_quoted(given, tmp_path):
    said = run("--source", given[0], "--output_dir", tmp_path / "my rows")[1]
    assert said.endswith(f"--train_data '{tmp_path / 'my rows'}'/train-*.jsonl.gz\n")


def test_the_same_command_says_that_it_is_done_and_another_is_refused(given, tmp_path):
    run("--source", *given, "--output_dir", tmp_path / "rows")
    assert run("--source", *given, "--output_dir", tmp_path / "rows") == (
        None, f"complete already: {tmp_path / 'rows'}\n")  # fmt: skip
    again = tmp_path / "again.json"
    run("--source", *given, "--output_dir", tmp_path / "rows", "--json", again)
    assert json.loads(again.read_text("utf-8")) == json.loads((tmp_path / "rows/report.json").read_text("utf-8"))
    assert "a complete folder of other rows" in fails("--source", given[0], "--output_dir", tmp_path / "rows")
    assert "files of something else" in fails("--source", given[0], "--output_dir", tmp_path)
    for out in (tmp_path, tmp_path / "a" / "b"):
        said = fails("--source", f"triplets={tmp_path}", "--output_dir", out)
        assert f"--output_dir {out}: found a folder below triplets={tmp_path}, which would read it" in said


def test_two_at_once_in_one_folder(given, tmp_path):
    out = tmp_path / "rows"
    out.mkdir()
    with alone(out, "waits"):
        said = fails("--source", *given, "--output_dir", out)
    assert said == f"error: --output_dir {out}: found another process that writes there; expected its end first\n"
    assert not out.exists(), "an empty folder is not left behind"
    run("--source", *given, "--output_dir", out)


def test_equal_arguments_give_equal_bytes(given, tmp_path):
    fingerprints = [
        run("--source", *given, "--output_dir", tmp_path / name, "--seed", 3)[0]["fingerprint"] for name in "ab"
    ]
    shard = "train-00000-of-00001.jsonl.gz"
    assert fingerprints[0] == fingerprints[1]
    assert (tmp_path / "a" / shard).read_bytes() == (tmp_path / "b" / shard).read_bytes()


@pytest.mark.parametrize("at", ["reading", "cleaning", "shards", "report"])
def test_a_run_that_is_killed_goes_on(at, given, tmp_path, monkeypatch):
    """What was done before is not done again, and nothing half done looks whole."""
    whole, _ = run("--source", *given, "--output_dir", tmp_path / "whole", "--shard_rows", 2)
    out, words = tmp_path / "rows", ["--source", *given, "--output_dir", tmp_path / "rows", "--shard_rows", 2]
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "cache"))
    written, calls = preparation.write_rows, []

    def dying(file, rows):
        calls.append(file.name)
        stop = {"reading": "triplets-", "cleaning": "00001.jsonl", "shards": "train-00001"}.get(at, "none")
        if file.name.startswith(stop) and len(calls) > 1:
            written(file, (row for number, row in enumerate(rows) if number < 1 or 1 / 0))
        written(file, rows)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_rows", dying)
        if at == "report":
            patch.setattr(report, "measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*words)
    assert not (out / "run.json").exists()
    assert not [file for file in tmp_path.rglob("*.partial")]
    done = {"reading": 0, "cleaning": 0, "shards": 1, "report": 3}[at]
    assert len(list(out.glob("train-*"))) == done
    again = []
    monkeypatch.setattr(preparation, "write_rows", lambda file, rows: (again.append(file.name), written(file, rows)))
    assert run(*words)[0]["fingerprint"] == whole["fingerprint"]
    assert read(out) == read(tmp_path / "whole")
    assert len(again) == {"reading": 7, "cleaning": 6, "shards": 2, "report": 0}[at]
    assert not (out / ".cleaned").exists() and (out / "run.json").exists()


def test_a_source_that_changed_is_read_again_and_one_that_did_not_is_not(given, tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "cache"))
    run("--source", *given, "--output_dir", tmp_path / "a")
    rows_file(tmp_path / "last.jsonl", LAST[:2])
    content, _ = run("--source", *given, "--output_dir", tmp_path / "b")
    assert content["rows"] == 5
    assert len(list((tmp_path / "cache" / "sources").glob("*.jsonl.gz"))) == 3


def test_a_folder_that_was_moved_to_another_split_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "cache"))
    rows_file(tmp_path / "1.Training/라벨/a.jsonl", FIRST)
    counted = []
    for name in ("1.Training", "2.Validation"):
        if not (tmp_path / name).exists():
            (tmp_path / "1.Training").rename(tmp_path / name)
        content, _ = run("--source", f"triplets={tmp_path / name / '라벨'}", "--output_dir", tmp_path / f"rows {name}")
        counted += [source["records"] for source in content["sources"]]
    assert counted == [{"train": 3}, {"dev": 3}]


def test_what_an_unfinished_other_plan_left_is_removed(given, tmp_path, monkeypatch):
    out = tmp_path / "rows"
    with monkeypatch.context() as patch:
        patch.setattr(report, "measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("--source", *given, "--output_dir", out, "--shard_rows", 1)
    content, _ = run("--source", given[0], "--output_dir", out)
    assert (content["rows"], len(read(out))) == (3, 3)


def test_a_hub_dataset_is_read_by_its_revision(tmp_path, monkeypatch):
    rows = [{"query": f"{text[:4]} 무엇인가요", "document": text, "hard_negative": LAST[0]} for text in FIRST]
    records = [(row, f"someone/rows, row {number}") for number, row in enumerate(rows, 1)]
    monkeypatch.setattr(general, "hub_records", lambda name, flag: iter(records))
    monkeypatch.setattr(preparation, "hub_revision", lambda name, flag: f"{name}@1")
    content, _ = run("--hub", "someone/rows", "--output_dir", tmp_path / "rows")
    assert (content["rows"], content["sources"][0]["path"]) == (3, "someone/rows")
    assert {row["source"] for row in read(tmp_path / "rows")} == {"someone/rows"}


def test_cleaning_is_counted_by_source(given, tmp_path):
    content, said = run("--source", given[0], given[0], "--output_dir", tmp_path / "rows")
    assert content["rows"] == 3 and content["cleaning"] == {"kept": 3, "exact duplicate": 3}
    assert (
        "| triplets | 3 |  | 0 | 3 | 0 | 3 | train 3 |" in said
        and "| triplets | 3 |  | 0 | 3 | 3 | 0 | train 3 |" in said
    )


def test_rows_that_share_text_with_a_task_go(tmp_path):
    task = tmp_path / "task"
    for name, texts in (("queries", [FIRST[0][:4] + " 무엇인가요"]), ("corpus", [FIRST[1]])):
        task.mkdir(exist_ok=True)
        lines = "".join(json.dumps({"_id": "1", "text": text}, ensure_ascii=False) + "\n" for text in texts)
        (task / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (task / "qrels").mkdir()
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t1\t1\n")
    source = f"triplets={rows_file(tmp_path / 'rows.jsonl', FIRST)}"
    content, said = run("--source", source, "--exclude_tasks", task, "--output_dir", tmp_path / "both")
    assert "note: 1 rows share a document with a task; --exclude_by queries keeps those" in said
    assert content["rows"] == 1 and sum(content["cleaning"].values()) == 3
    queries = ["--exclude_by", "queries", "--output_dir", tmp_path / "queries"]
    content, said = run("--source", source, "--exclude_tasks", task, *queries)
    assert content["rows"] == 2 and "share a document" not in said
    assert "no such folder" in fails(
        "--source", source, "--exclude_tasks", tmp_path / "no", "--output_dir", tmp_path / "c"
    )


def test_the_text_of_a_titled_document_goes_too(tmp_path):
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    titled = {"_id": "1", "title": "강의 안내", "text": FIRST[1]}
    for name, row in (("queries", {"_id": "1", "text": "무엇인가요"}), ("corpus", titled)):
        (task / f"{name}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (task / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n1\t1\t1\n")
    source = f"triplets={rows_file(tmp_path / 'rows.jsonl', FIRST)}"
    assert "--exclude_by queries" in fails(
        "--source", f"triplets={rows_file(tmp_path / 'one.jsonl', FIRST[1:2])}", "--exclude_tasks", task,
        "--output_dir", tmp_path / "none",
    )  # fmt: skip
    content, _ = run("--source", source, "--exclude_tasks", task, "--output_dir", tmp_path / "rows")
    assert content["cleaning"] == {"document in task/dev (equal)": 1, "kept": len(FIRST) - 1}


def test_of_a_task_all_but_train_is_excluded_and_of_its_documents_the_right_ones():
    for by in ("both", "queries"):
        found = {name: texts for name, *texts in preparation.excluded("demo", by)}
        assert list(found) == ["demo/dev", "demo/test"]
        for split in ("dev", "test"):
            task, (queries, documents) = load_task("demo", split), found[f"demo/{split}"]
            right = {task.corpus[document] for answers in task.qrels.values() for document in answers}
            untitled = {text.partition("\n")[2] for text in right} - {""}
            assert queries == list(task.queries.values())
            assert set(documents) == (right | untitled if by == "both" else set())
    assert len(set(documents)) < len(task.corpus)


def test_each_column_has_the_shape_of_its_texts():
    row = {"query": "가", "document": "나", "hard_negative": "다", "document_score": 1.0, "hard_negative_score": 2.0,
           "source": "라"}  # fmt: skip
    shaped = Shape(documents=True, negatives=False, scores=True)(row)
    assert shaped == row | {"document": ["나"], "document_score": [1.0], "id": None}
    shaped = Shape(documents=False, negatives=True, scores=True)(row)
    assert shaped == row | {"hard_negative": ["다"], "hard_negative_score": [2.0], "id": None}


def test_quantiles_are_the_first_values_that_reach_their_share():
    assert report.quantiles(Counter(range(1, 21))) == [1, 10, 19] and report.quantiles(Counter()) == []
    assert report.quantiles(Counter({7: 5, 9: 5})) == [7, 7, 9]


def test_nothing_left_after_cleaning_is_an_error(given, tmp_path):
    words = ["--source", given[0], "--output_dir", tmp_path / "rows", "--min_characters", 500]
    assert "no row left after cleaning" in fails(*words)
    assert not list((tmp_path / "rows").glob("train-*"))


def test_rows_without_a_hard_negative_get_mined_ones(tmp_path):
    river = ["한강에는 다리가 서른 개 넘게 놓여 있다.", "한강 수영장은 여름에 문을 연다."]
    rows_file(tmp_path / "first.jsonl", [*FIRST, *river])
    rows_file(tmp_path / "last.jsonl", LAST, hard_negative="하늘은 푸르다.")
    words = ["--source", f"triplets={tmp_path / 'first.jsonl'}", f"triplets={tmp_path / 'last.jsonl'}"]
    words += ["--negatives", "bm25", "--num_negatives", 2, "--max_ratio", 1, "--shard_rows", 3]
    content, _ = run(*words, "--output_dir", tmp_path / "rows")
    found = {row["document"]: row["hard_negative"] for row in read(tmp_path / "rows")}
    assert set(found[FIRST[0]]) == set(river), "passages of another shard are mined too"
    assert all(found[text] == ["하늘은 푸르다."] for text in LAST), "what the source gave stays"
    assert not any(document in (negatives or []) for document, negatives in found.items())
    counts = content["mining"]["counts"]
    assert (counts["rows"], counts["rows with hard negatives of their source"]) == (5, 3)
    assert "## Mining" in (tmp_path / "rows" / "report.md").read_text(encoding="utf-8")


def test_one_mined_negative_a_row_is_a_text_as_it_was_given(tmp_path):
    rows_file(tmp_path / "first.jsonl", FIRST)
    rows_file(tmp_path / "last.jsonl", LAST, hard_negative="하늘은 푸르다.")
    words = ["--source", f"triplets={tmp_path / 'first.jsonl'}", f"triplets={tmp_path / 'last.jsonl'}"]
    run(*words, "--negatives", "bm25", "--max_ratio", 1, "--output_dir", tmp_path / "rows")
    loaded = datasets.load_dataset(str(tmp_path / "rows"), split="train", cache_dir=str(tmp_path / "hf"))
    mined = loaded["hard_negative"][: len(FIRST)]
    assert all(text is None or text in FIRST + LAST for text in mined) and any(mined)
    assert loaded["hard_negative"][-1] == "하늘은 푸르다."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "beir=demo", "--output_dir", "o", "--json", "."], "--json .: found a folder"),
        (
            ["--source", "beir=demo", "--output_dir", "o", "--negatives", "milvus"],
            "--negatives milvus: found",
        ),
        (["--source", "beir=demo", "--output_dir", "o", "--min_characters", "0"], "--min_characters"),
        ([], "--source: found nothing to read"),
        (["--source", "beir=demo"], "--output_dir: found nothing"),
        (["--source", "korqad=x", "--output_dir", "o"], "did you mean korquad"),
        (["--source", "korquad", "--output_dir", "o"], "--source korquad: found no path"),
        (["--source", "korquad=nowhere", "--output_dir", "o"], "nowhere: found no such file or folder"),
        (["--source", "csv=FAQ*.csv", "--output_dir", "o"], "--source csv=FAQ*.csv: found a * that the shell left"),
        (["--source", "beir=demo", "--output_dir", "o", "--splits", "all"], "--splits: found all"),
        (["--source", "beir=demo", "--output_dir", "o", "--window", "5"], "--window: found 5"),
        (["--source", "beir=demo", "--output_dir", "o", "--seed", "-1"], "--seed: found -1"),
        (["--source", "beir=demo", "--output_dir", "o", "--negatives", "bm52"], "did you mean bm25"),
        (["--source", "beir=demo", "--output_dir", "o", "--shards", "5"], "--shards"),
        (["--hub", "a/b", "--output_dir", "o"], "--hub a/b: found nothing from the hub"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = fails(*words)
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "o" / "run.json").exists()


def test_the_list_and_the_help():
    assert "723,428" in run("--list")[1]
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        prepare_data.main(["--help"])
    assert "--near_duplicate_threshold" in said.getvalue() and "--negatives" in said.getvalue()


def test_the_demo_goes_through_like_any_source_from_any_folder(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KOIR_CACHE": str(tmp_path / "cache")}
    words = ["--source", "beir=demo", "--output_dir", "rows"]
    done = commands.run(ROOT / "scripts" / "prepare_data.py", *words, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    committed = [json.loads(line) for line in (DEMO / "triplets.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = list(zip(read(tmp_path / "rows"), committed, strict=True))
    assert all(ours["query"] == row["query"] and ours["document"] in row["document"] for ours, row in pairs)


def test_the_content_key_of_a_part_is_that_of_all(tmp_path):
    for number in range(3):
        (tmp_path / f"x.zip.part{number}").write_text(str(number))
    before = content_key([tmp_path / "x.zip.part0"])
    (tmp_path / "x.zip.part2").write_text("neu")
    assert content_key([tmp_path / "x.zip.part0"]) != before


def test_the_content_key_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.json").write_text("1")
    before = content_key([tmp_path / "a"])
    (tmp_path / "a" / "x.json").write_text("2")
    changed = content_key([tmp_path / "a"])
    (tmp_path / "a" / "x.json").rename(tmp_path / "a" / "y.json")
    assert len({before, changed, content_key([tmp_path / "a"])}) == 3


def test_columns_of_any_name(tmp_path):
    row = f"7,산은 무엇인가요,{FIRST[1]},{LAST[0]},아니다"
    (tmp_path / "표.csv").write_text(f"번호,제목,본문글,틀린 글,query\n{row}\n", encoding="utf-8")
    record = {"instruction": "궁은 무엇인가요", "output": FIRST[2]}
    (tmp_path / "x.jsonl").write_text(json.dumps(record), encoding="utf-8")
    columns = ["query=" + unicodedata.normalize("NFD", "제목"), "document=본문글", "hard_negative=틀린 글"]
    table = tmp_path / "표.csv"
    _, said = run("--source", f"csv={table}", "--columns", *columns, "--output_dir", tmp_path / "a")
    (row,) = read(tmp_path / "a")
    assert [row[name] for name in ("query", "document", "hard_negative")] == ["산은 무엇인가요", FIRST[1], LAST[0]]
    assert "not read: the column '번호'" in said
    columns = ["query=instruction", "document=output", "hard_negative=wrong"]
    run("--source", f"triplets={tmp_path / 'x.jsonl'}", "--columns", *columns, "--output_dir", tmp_path / "b")
    assert [(row["query"], row["document"], row["hard_negative"]) for row in read(tmp_path / "b")] == [
        ("궁은 무엇인가요", FIRST[2], None)
    ]


def test_the_same_rows_are_read_anew_under_other_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("KOIR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.csv").write_text(f"a,b,c\n{FIRST[0]},{FIRST[1]},{FIRST[2]}\n", encoding="utf-8")
    for name in "bc":
        words = ["--columns", "query=a", f"document={name}", "--output_dir", tmp_path / name]
        run("--source", f"csv={tmp_path / 'x.csv'}", *words)
    assert [read(tmp_path / name)[0]["document"] for name in "bc"] == FIRST[1:]


@pytest.mark.parametrize(
    "columns, expected",
    [
        (
            ["query=없다", "document=b"],
            "x.csv, row 1: found the columns a, b; expected '없다', as --columns names the query",
        ),
        (["qery=a"], "expected one of query, document, hard_negative; did you mean query?"),
        (["query="], "found no name; expected FIELD=NAME"),
        (["query=a", "query=b"], "query a second time"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(columns, expected, tmp_path):
    (tmp_path / "x.csv").write_text(f"a,b\n{FIRST[0]},{FIRST[1]}\n", encoding="utf-8")
    out = tmp_path / "rows"
    assert expected in fails("--source", f"csv={tmp_path / 'x.csv'}", "--columns", *columns, "--output_dir", out)


def test_columns_without_a_source_that_has_names_of_its_own_are_refused(tmp_path):
    words = ["--source", "beir=demo", "--columns", "query=a", "--output_dir", tmp_path / "rows"]
    assert "--columns: found beir; expected one of bge, csv, hub, triplets" in fails(*words)


def test_sources_beside_the_one_that_was_meant_keep_their_names(given, tmp_path):
    (tmp_path / "x.csv").write_text(f"제목,본문글\n산은 무엇인가요,{LAST[0]}\n", encoding="utf-8")
    (tmp_path / "y.tsv").write_text(f"탑은 무엇인가요\t{LAST[1]}\n", encoding="utf-8")
    (tmp_path / "z.jsonl").write_text(json.dumps({"제목": "강은 무엇인가요", "positive": LAST[2]}), encoding="utf-8")
    sources = [given[0], f"csv={tmp_path / 'x.csv'}", *(f"triplets={tmp_path / name}" for name in ("y.tsv", "z.jsonl"))]
    columns = ["query=제목", "document=본문글", "hard_negative=오답글"]
    assert "'오답글', as --columns names the hard_negative" in fails(
        "--source", *sources, "--columns", *columns, "--output_dir", tmp_path / "a"
    )
    run("--source", *sources[:3], "--columns", *columns[:2], "--output_dir", tmp_path / "b")
    assert len(read(tmp_path / "b")) == 5
    run("--source", sources[3], "--columns", "query=제목", "--output_dir", tmp_path / "c")
    assert read(tmp_path / "c")[0]["document"] == LAST[2]


def test_a_table_of_known_names_beside_one_of_others(tmp_path):
    (tmp_path / "faq.csv").write_text(f"질문,답변\n산은 무엇인가요,{FIRST[1]}\n", encoding="utf-8")
    (tmp_path / "title.csv").write_text(f"제목,본문글\n강은 무엇인가요,{FIRST[0]}\n", encoding="utf-8")
    sources = [f"csv={tmp_path / name}" for name in ("faq.csv", "title.csv")]
    columns = ["query=제목", "document=본문글"]
    run("--source", *sources, "--columns", *columns, "--output_dir", tmp_path / "rows")
    assert {row["query"]: row["document"] for row in read(tmp_path / "rows")} == {
        "산은 무엇인가요": FIRST[1], "강은 무엇인가요": FIRST[0]
    }  # fmt: skip


def test_a_hard_negative_that_is_there_stays(tmp_path):
    rows_file(tmp_path / "x.jsonl", FIRST[:1], hard_negative=[LAST[0]])
    words = ["--columns", "hard_negative=neg2", "--output_dir", tmp_path / "rows"]
    run("--source", f"triplets={tmp_path / 'x.jsonl'}", *words)
    assert read(tmp_path / "rows")[0]["hard_negative"] == LAST[0]


def test_every_file_that_decides_about_rows_is_there():
    """Their bytes are part of what a folder of rows is known by."""
    assert all((preparation.ROOT / "koir" / name).exists() for name in preparation.CODE)
    files = (preparation.ROOT / "koir" / "sources").glob("*.py")
    imported = {name for file in files for name in re.findall(r"^from koir\.([\w.]+)", file.read_text(), re.MULTILINE)}
    known = {name.removesuffix(".py").replace("/", ".") for name in preparation.READING}
    assert {name for name in imported if not name.startswith("sources.")} - known == {"errors"}


def test_how_near_rows_may_be_does_not_say_how_near_a_hard_negative_may(tmp_path, monkeypatch):
    rows_file(tmp_path / "x.jsonl", FIRST[:1])
    planned = []
    monkeypatch.setattr(prepare_data, "prepare", planned.append)
    words = ["--near_duplicate_threshold", "1", "--negatives", "bm25", "--output_dir", tmp_path / "rows"]
    run("--source", f"triplets={tmp_path / 'x.jsonl'}", *words)
    assert planned[0].cleaning["near_duplicate_threshold"] == 1 and planned[0].rules.near_duplicate_threshold == 0.8
