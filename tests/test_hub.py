import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_hub import local_hub
from one_step import tiny_encoder
from test_reranker import tiny_reranker

import evaluate
from koir.encoder import load_encoder
from koir.errors import TaskError
from koir.evaluation import hub, reproduction
from koir.evaluation.hub import BENCHMARKS, KOREAN
from koir.evaluation.joint import Joint, Settings
from koir.evaluation.metrics import KS
from koir.evaluation.pipeline import Pipeline, evaluate_first_stage
from koir.evaluation.tasks import load_task, splits
from koir.retrieval.stages import in_memory

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mteb", reason="mteb is not installed")

CORPUS = [
    {"_id": f"d{n}", "title": title, "text": text}
    for n, (title, text) in enumerate(
        [("연차", "한 해를 일하면 열닷새를 쉰다."), ("", "임금은 매달 정한 날에 준다."), ("세금", "부가세를 신고한다."),
         ("", "근로계약서를 만든다."), ("", "퇴직금은 한 달 치이다."), ("", "임금은 매달 정한 날에 준다.")]
    )
]  # fmt: skip
QUERIES = [
    {"_id": f"q{n}", "text": text} for n, text in enumerate(["연차는 며칠?", "임금은 언제?", "세금 신고", "안 쓰임"])
]
QRELS = [("q0", "d0"), ("q1", "d1"), ("q1", "d4"), ("q2", "d2")]
CANDIDATES = {"q0": ["d3", "d0", "d1", "d2"], "q1": ["d4", "d0", "d2", "d3", "d1"], "q2": ["d0", "d1"]}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Dataset repositories as `hf download` leaves them: of JSON lines, of Parquet, one that mteb reshapes itself."""
    root = tmp_path_factory.mktemp("hub")
    folder = root / "taeminlee/Ko-StrategyQA"
    (folder / "qrels").mkdir(parents=True)
    qrels = [{"query-id": query, "corpus-id": document, "score": 1} for query, document in QRELS]
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES), ("qrels/dev", qrels)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "README.md").write_text(card(default=("dev", "qrels/dev.jsonl"), corpus=("corpus", "corpus.jsonl"),
                                           queries=("queries", "queries.jsonl")), encoding="utf-8")  # fmt: skip
    folder = root / "xhluca/publichealth-qa"
    folder.mkdir(parents=True)
    (folder / "korean.csv").write_text("question,answer\n코로나란?,감염병이다.\n손은?,자주 씻는다.\n", encoding="utf-8")
    (folder / "README.md").write_text(card(korean=("test", "korean.csv")), encoding="utf-8")
    parquet(
        root / "yjoonjang/markers_bm",
        {"corpus": ("corpus", "corpus", CORPUS), "default": ("test", "data", qrels),
         "queries": ("queries", "queries", QUERIES)},
    )  # fmt: skip
    named = {"corpus": CORPUS, "qrels": [*qrels, {"query-id": "q0", "corpus-id": "d1", "score": 0}], "queries": QUERIES,
             "top_ranked": [{"query-id": query, "corpus-ids": ids} for query, ids in CANDIDATES.items()]}  # fmt: skip
    parquet(root / "mteb/MIRACLReranking", {f"ko-{part}": ("dev", f"ko-{part}", rows) for part, rows in named.items()})
    return str(root)


def parquet(folder, configs):
    """Write a repository as `push_to_hub` does: config -> (split, folder in it, rows)."""
    for split, place, rows in configs.values():
        (folder / place).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / place / f"{split}-00000-of-00001.parquet")
    files = {name: (split, f"{place}/{split}-*") for name, (split, place, _) in configs.items()}
    (folder / "README.md").write_text(card(**files), encoding="utf-8")


def card(**configs):
    files = [f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n"
             for name, (split, path) in configs.items()]  # fmt: skip
    return "---\nconfigs:\n" + "".join(files) + "---\n"


def test_a_task_is_read_from_a_copy_of_its_repository(data_root):
    task = load_task("Ko-StrategyQA", "test", data_root)
    assert (task.name, task.split, list(task.queries)) == ("Ko-StrategyQA", "dev", ["q0", "q1", "q2"])
    assert task.corpus["d0"] == "연차 한 해를 일하면 열닷새를 쉰다." and task.corpus["d1"].startswith("임금은")
    assert task.qrels == {"q0": {"d0": 1}, "q1": {"d1": 1, "d4": 1}, "q2": {"d2": 1}} and task.candidates is None


def test_a_task_in_a_shape_of_its_own_is_read_too(data_root):
    task = load_task("PublicHealthQA", "test", data_root)
    assert list(task.queries.values()) == ["코로나란?", "손은?"] and len(task.corpus) == 2


def test_repositories_of_parquet_are_read(data_root):
    task = load_task("AutoRAGRetrieval", "test", data_root)
    assert (task.split, list(task.queries), len(task.corpus)) == ("test", ["q0", "q1", "q2"], len(CORPUS))
    assert task.qrels["q1"] == {"d1": 1, "d4": 1} and task.candidates is None


def test_a_reranking_tasks_candidates_are_read(data_root):
    task = load_task("MIRACLReranking", "test", data_root)
    assert (task.split, task.candidates) == ("dev", CANDIDATES)
    assert task.qrels == load_task("Ko-StrategyQA", "dev", data_root).qrels  # what scores 0 is no answer


def test_decomposed_text_of_the_hub_becomes_composed():
    nfd = unicodedata.normalize("NFD", "연차")
    data = {"relevant_docs": {"q": {"d": 1}}, "queries": [{"id": "q", "text": nfd}],
            "corpus": [{"id": "d", "title": nfd, "text": nfd}]}  # fmt: skip
    assert hub._plain(data)[:2] == ({"q": "연차"}, {"d": "연차 연차"})


def test_a_benchmark_is_evaluated_from_copies_and_held_against_published_cells(
    data_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    name = "intfloat/multilingual-e5-large"  # a local folder of that name stands for the hub's
    load_encoder("demo", num_hidden_layers=1).save(tmp_path / name)
    published = str(Path(evaluate.__file__).parent / "results/published/koe5.json")
    contents = evaluate.main(["--benchmark", "koe5", "--data_root", data_root, "--first_stage", "bm25", f"dense:{name}",
                              "--reproduce", published, "--output_dir", "results"])  # fmt: skip
    assert [content["task_name"] for content in contents] == [task for task in BENCHMARKS["koe5"] for _ in "12"]
    cells = [cell for cell in reproduction.read_cells(published) if cell["model"] == name]
    printed = capsys.readouterr().out.partition(f"{published}:\n")[2].splitlines()
    assert len(printed) == len(cells) + 1 and all(line.startswith(name) for line in printed[:-1])
    assert {line.split("  ")[1] for line in printed[:-1]} == set(BENCHMARKS["koe5"])
    assert printed[-1].split(";")[0].endswith(f" of {len(cells)} cells OK")


def test_without_hub_and_copy_the_line_says_how_to_get_one(data_root):
    for root in (data_root, None):
        with pytest.raises(TaskError, match="hf download --repo-type dataset on-and-on/lawgov_ir-ko --revision"):
            load_task("LawIRKo", "test", root)


def test_a_broken_copy_is_refused(tmp_path):
    (tmp_path / "on-and-on/lawgov_ir-ko").mkdir(parents=True)
    with pytest.raises(TaskError, match="the dataset repository whole"):
        load_task("LawIRKo", "test", str(tmp_path))


def test_the_benchmarks_name_known_tasks_of_mteb():
    import mteb

    for name, (subset, of_task) in KOREAN.items():
        metadata = mteb.get_task(name).metadata
        assert set(of_task) <= set(metadata.eval_splits) and splits(name) == of_task
        assert subset in (metadata.hf_subsets if metadata.is_multilingual else ["default"])
    assert {name for names in BENCHMARKS.values() for name in names} <= set(KOREAN)
    assert (len(BENCHMARKS["koe5"]), len(BENCHMARKS["kor-v2"])) == (3, 9)


def test_scores_are_mtebs_own(data_root, tmp_path, monkeypatch):
    import mteb
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder("demo", num_hidden_layers=1)
    encoder.save(tmp_path / "model")
    theirs = mteb.get_task("Ko-StrategyQA")
    path = f"{data_root}/taeminlee/Ko-StrategyQA"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    theirs.metadata = theirs.metadata.model_copy(update={"dataset": {"path": path, "revision": "local"}})
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    found = mteb.evaluate(model, theirs, cache=None, show_progress_bar=False)
    (row,) = found.task_results[0].scores["dev"]
    done = evaluate_first_stage(in_memory(encoder), load_task("Ko-StrategyQA", "dev", data_root), Pipeline("dense"))
    (ours,) = done.content["scores"]["dev"]
    for metric in ("ndcg", "recall", "precision", "mrr", "hit_rate"):
        for k in KS:
            assert ours[f"{metric}_at_{k}"] == pytest.approx(row[f"{metric}_at_{k}"], abs=1e-4), f"{metric}@{k}"
    assert ours["main_score"] == pytest.approx(row["main_score"], abs=1e-4)


def test_scores_of_reranked_candidates_are_mtebs_own(data_root, tmp_path, monkeypatch):
    import mteb
    from sentence_transformers import CrossEncoder

    model = tiny_reranker(tmp_path)
    model.save(tmp_path / "model")
    theirs = mteb.get_task("MIRACLReranking", hf_subsets=["ko"])
    path = f"{data_root}/mteb/MIRACLReranking"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    theirs.metadata = theirs.metadata.model_copy(update={"dataset": {"path": path, "revision": "local"}})
    found = mteb.evaluate(CrossEncoder(str(tmp_path / "model"), device="cpu"), theirs, cache=None,
                          show_progress_bar=False)  # fmt: skip
    (row,) = found.task_results[0].scores["dev"]
    settings = Settings(["bm25"], [str(tmp_path / "model")], [2], progress=False)
    done = Joint(settings, [], tmp_path / "results").evaluate(load_task("MIRACLReranking", "dev", data_root))[1]
    (ours,) = done.content["scores"]["dev"]
    assert 0 < ours["ndcg_at_10"] < 1
    for metric in ("ndcg", "recall", "precision", "mrr", "hit_rate"):
        for k in KS:
            assert ours[f"{metric}_at_{k}"] == pytest.approx(row[f"{metric}_at_{k}"], abs=1e-4), f"{metric}@{k}"


def test_mteb_is_not_imported_for_other_tasks():
    code = "import sys\nfrom koir.evaluation.tasks import load_task\nload_task('demo')\nprint('mteb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=None)
    assert done.stdout.strip() == "False", done.stderr


def test_models_rows_and_tasks_are_read_by_their_hub_names_and_nothing_else_is_asked(data_root, tmp_path):
    hub = tmp_path / "hub"
    tiny_encoder().save(hub / "models/acme/encoder")
    tiny_reranker(tmp_path).save(hub / "models/acme/reranker")
    shutil.copytree(data_root, hub / "datasets")
    (hub / "datasets/acme/rows").mkdir(parents=True)
    shutil.copy(ROOT / "koir/demo/triplets.jsonl", hub / "datasets/acme/rows/train.jsonl")
    code = f"""
import evaluate
from koir.triplets import load_triplets
stages = ["bm25", "dense:acme/encoder", "dense:{hub}/models/acme/encoder"]
evaluate.main(["--first_stage", *stages, "--reranker", "acme/reranker", "--tasks", "Ko-StrategyQA", "AutoRAGRetrieval",
               "MIRACLReranking", "--output_dir", "results", "--json", "all.json"])
print(len(load_triplets(["acme/rows"]).pairs), "pairs")
"""
    with local_hub(hub) as (address, asked):
        online = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        online |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=online, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("\n840 pairs\n"), done.stderr[-3000:]
    scores = {}
    for content in json.loads((tmp_path / "all.json").read_text(encoding="utf-8")):
        (of_split,) = content["scores"].values()
        scores.setdefault(content["koir"]["pipeline"]["first_stage"], []).append(of_split[0]["ndcg_at_10"])
    by_name, by_path = (scores[stage] for stage in scores if stage != "bm25")
    assert by_name == by_path and len(by_name) == 6 and min(by_name) > 0
    assert all(path.startswith(("/api/models/acme/", "/api/datasets/")) or "/resolve/" in path for path in asked)
