"""hypothesis through every reader that needs no model: whatever is in a file, an error of our own or none comes out.

Run by scripts/test.sh --fuzz; tests/fuzz_input.py damages good files for the same readers and for those of models.
"""

import contextlib
import json
import os
import sys

import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT))

from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from koir import arguments
from koir.errors import UserError
from koir.evaluation.pipeline import read_pipeline
from koir.evaluation.reproduction import asked, read_cells
from koir.evaluation.stored import query_rows, read_result, read_results, training_runs
from koir.evaluation.tasks import load_task
from koir.flags import parse
from koir.manifest import read_run
from koir.row_files import file_records
from koir.serving import schemas
from koir.serving.problems import from_validation
from koir.triplets import check_row

CASES = int(os.environ.get("KOIR_FUZZ_CASES", 2000))
quick = settings(
    max_examples=CASES // 2, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
texts = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(["가", "연차는?", "q0", "d0", "test", ""])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**25) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
KINDS = [arguments.ModelArguments, arguments.DataArguments, arguments.LossArguments, arguments.ChunkArguments]
FLAGS = sorted(name for kind in KINDS for name in kind.__annotations__)


def objects(*names):
    """JSON objects that have some of these keys, and now and then others."""
    return st.dictionaries(st.sampled_from(names) | texts, values | texts, max_size=len(names))


def written(content):
    """As a file would hold it; halves of surrogate pairs as JSON escapes them."""
    return json.dumps(content).encode()


@contextlib.contextmanager
def only_ours():
    """An error of ours may come out, with place and expectation, and nothing else."""
    try:
        yield
    except UserError as error:
        assert error.place and error.expected, repr(error)


@quick
@given(objects("query", "document", "hard_negative", "document_score", "hard_negative_score", "source", "pos") | values)
def test_rows(row):
    with only_ours():
        assert check_row(row, "here, line 1")


@quick
@given(st.lists(st.binary(max_size=30) | objects("query", "document").map(written), max_size=4))
def test_files_of_rows(tmp_path_factory, lines):
    file = tmp_path_factory.getbasetemp() / "rows.jsonl"
    file.write_bytes(b"\n".join(lines))
    with only_ours():
        for row, place in file_records(file):
            check_row(row, place)


@quick
@given(st.dictionaries(st.sampled_from(FLAGS) | texts, values, max_size=4) | values)
def test_recipes(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "recipe.yaml"
    with contextlib.suppress(UnicodeEncodeError):
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        with only_ours():
            parse(KINDS, [str(file)], "")


lines = st.lists(objects("_id", "title", "text", "metadata").map(written) | st.binary(max_size=20), max_size=4)
judged = st.lists(st.lists(texts | st.sampled_from(["q0", "d0", "1"]), max_size=4), max_size=3)


@quick
@given(lines, lines, judged)
def test_tasks(tmp_path_factory, corpus, queries, qrels):
    folder = tmp_path_factory.getbasetemp() / "task"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    good = b'{"_id": "%s", "text": "x"}'
    (folder / "corpus.jsonl").write_bytes(b"\n".join([*corpus, good % b"d0"]))
    (folder / "queries.jsonl").write_bytes(b"\n".join([*queries, good % b"q0"]))
    table = "\n".join(["query-id\tcorpus-id\tscore", "q0\td0\t1", *map("\t".join, qrels)])
    (folder / "qrels" / "test.tsv").write_bytes(table.encode("utf-8", "surrogatepass"))
    with only_ours():
        load_task(str(folder))


SCORES = objects("ndcg_at_10", "recall_at_10", "mrr_at_10", "hf_subset")
RESULT = st.fixed_dictionaries(
    {"scores": st.fixed_dictionaries({"test": st.lists(SCORES, max_size=2)}) | values, "task_name": texts | values},
    optional={"koir": objects("pipeline", "intervals", "name", "queries")},
)


@quick
@given(RESULT | values, lines | st.lists(objects("query_id", "relevant", "top", "scores").map(written), max_size=3))
def test_results(tmp_path_factory, content, rows):
    folder = tmp_path_factory.getbasetemp() / "results"
    for name in ("one", "published"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "task.json").write_bytes(written(content))
    (folder / "one" / "task.queries.jsonl").write_bytes(b"\n".join(rows))
    assert all(isinstance(error, UserError) for error in read_results(folder)[2])
    with only_ours():
        query_rows(read_result(folder / "one" / "task.json"))


@quick
@given(objects("cells", "models", "tolerance", "first_stage", "tasks", "kind", "base", "reranker", "depth") | values)
def test_manifests_pipelines_and_expected_scores(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "runs" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.json"
    file.write_bytes(written(content))
    (folder / "metrics.jsonl").write_bytes(written(content) + b"\n{")
    list(training_runs(folder.parent))
    for read in (lambda: read_run(folder, kind=str), lambda: read_pipeline(str(file)),
                 lambda: read_cells(str(file)), lambda: asked(str(file))):  # fmt: skip
        with only_ours():
            read()


BODIES = [schemas.RerankRequest, schemas.ScoreRequest, schemas.EmbeddingRequest, schemas.SearchRequest]
SHAPES = [TypeAdapter(kind) for kind in (*BODIES, schemas.AnyRerankRequest)]
FIELDS = ("query", "documents", "texts", "top_n", "text_1", "text_2", "queries", "input", "dimensions", "input_type")


@quick
@given(objects(*FIELDS, "rank_fields", "truncate_prompt_tokens", "truncation_side", "raw_scores", "depth") | values)
def test_bodies(body):
    for shape in SHAPES:
        try:
            read = shape.validate_python(body)
            [getattr(read, name, None) for name in ("raw", "sides", "pairs", "prompt", "inputs")]
        except ValidationError as error:
            problem = from_validation(RequestValidationError(error.errors()).errors())
            assert problem.message and problem.code and problem.status in (400, 422)
