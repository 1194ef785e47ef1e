"""Mutated files through every reader: only errors of our own, each with place and expectation, may come out.

    .venv/bin/python tests/fuzz_input.py [--inputs 20000] [--seed 0] [--only NAME]

Good files (the demo's rows, recipes, task, results, small archives, a model folder) and bodies of requests are damaged:
bytes flipped, cut, doubled, swapped; JSON values and keys replaced by others of any type. A server may answer anything
but 5xx, and every error with place and expectation; no input may make a reader take all memory. The last line printed
is JSON for benchmarks/faults.py.
"""

import argparse
import contextlib
import gzip
import io
import json
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import openpyxl  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from one_step import tiny_encoder  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from test_reranker import tiny_reranker  # noqa: E402

from koir import arguments  # noqa: E402
from koir.bars import progress_bar  # noqa: E402
from koir.encoder import load_encoder  # noqa: E402
from koir.errors import RowError, UserError  # noqa: E402
from koir.evaluation.pipeline import read_pipeline  # noqa: E402
from koir.evaluation.reproduction import read_cells  # noqa: E402
from koir.evaluation.stored import query_rows, read_result, read_results, training_runs  # noqa: E402
from koir.evaluation.tasks import load_task  # noqa: E402
from koir.flags import parse  # noqa: E402
from koir.manifest import newest_run, read_run  # noqa: E402
from koir.reranker import load_reranker  # noqa: E402
from koir.retrieval.opening import open_index  # noqa: E402
from koir.row_files import file_records  # noqa: E402
from koir.serving.app import create_app  # noqa: E402
from koir.serving.loading import Loader, ServedArguments, _from_file, load  # noqa: E402
from koir.sources.registry import checked_rows, find  # noqa: E402
from koir.sources.tally import Tally  # noqa: E402
from koir.triplets import check_row  # noqa: E402

DEMO = ROOT / "koir" / "demo"
STRANGE = [
    None,
    True,
    0,
    -1,
    1e308,
    "",
    " ",
    "\ufeff",
    "가" * 5000,
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    {"a": {}},
    ["", None],
    10**30,
]
STRANGE_YAML = """
    2026-02-30 | 2026-11-30 | 12:99 | 0x | 0o9 | 1_000 | .inf | 1e400 | ~ | <<: [1] | [a, [b]] | {a: 2026-11-30}
    &a [*a] | &a {b: *a} | *x | !!bool x | !!float x | !!int '' | !!timestamp x | !!timestamp 2026-11-30 | !!binary aGk
    !!map x | !!set {a} | !!omap [a: 1] | !!python/name:os | !foo x | "\\0" | "\\ud800" | ? [a] | % | @ | -x | '--seed'
""".replace("\n", "|").split("|")
MEMORY = 6 * 2**30  # bytes: no input may take more
KINDS = [arguments.ModelArguments, arguments.DataArguments, arguments.LossArguments, arguments.ChunkArguments]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One to a few damages to bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(6)
        if how == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif how == 1:
            del data[at:]
        elif how == 2:
            data[at:at] = data[at : at + rng.randrange(50)]
        elif how == 3:
            data[at:at] = rng.choice(
                [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b"{", b"]", b'"', b"\t", b":"]
            )
        elif how == 4:
            del data[at : at + rng.randrange(1, 30)]
        else:
            data[at : at + 2] = rng.choice(["가", "é", "𝒳", "ᄀ"]).encode("cp949", "replace")
    return bytes(data)


def replaced(content, rng: random.Random):
    """JSON with one value or key, somewhere, put in the place of another."""
    if isinstance(content, dict) and content and rng.random() < 0.8:
        key = rng.choice(list(content))
        how, copy = rng.randrange(4), dict(content)
        if how == 0:
            copy[key] = rng.choice(STRANGE)
        elif how == 1:
            del copy[key]
        elif how == 2:
            copy[str(rng.choice(STRANGE))] = copy.pop(key)
        else:
            copy[key] = replaced(content[key], rng)
        return copy
    if isinstance(content, list) and content and rng.random() < 0.8:
        copy, at = list(content), rng.randrange(len(content))
        copy[at] = replaced(copy[at], rng)
        return copy
    return rng.choice(STRANGE)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes damaged, or, where they are JSON (lines), a value replaced."""
    if rng.random() < 0.5:
        return flipped(data, rng)
    for lines in (False, True):
        with contextlib.suppress(ValueError):
            parts = data.decode().splitlines() if lines else [data.decode()]
            at = rng.randrange(len(parts))
            parts[at] = json.dumps(replaced(json.loads(parts[at]), rng), ensure_ascii=True)
            return "\n".join(parts).encode()
    return flipped(data, rng)


def of_yaml(data: bytes, rng: random.Random) -> bytes:
    """YAML with the end of a line, behind one of its colons, put in the place of another value."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    parts = lines[at].split(": ")
    value = rng.choice([*map(str.strip, STRANGE_YAML), "9" * 5000, "0x" + "f" * 5000, "[" * 3000])
    lines[at] = ": ".join([*parts[: rng.randrange(1, len(parts)) if len(parts) > 1 else 1], value])
    return "\n".join([*lines, ""]).encode()


# --- readers ---------------------------------------------------------------------------------------------------------


def read_rows(file: Path) -> None:
    """Training rows of one file."""
    for row, place in file_records(file):
        check_row(row, place)


def read_recipe(file: Path) -> None:
    """A recipe, through the parser."""
    parse(KINDS, [str(file)], "")


def read_source(name: str) -> Callable[[Path], None]:
    """A raw release through a source."""

    def read(file: Path) -> None:
        for _ in checked_rows(find(name), file, Tally()):
            pass

    return read


def read_task(file: Path) -> None:
    """A BEIR folder, one file of which is damaged."""
    folder = file.parent.parent if file.parent.name == "qrels" else file.parent
    load_task(str(folder), "test")


def read_results_folder(file: Path) -> None:
    """A results folder: broken files are returned as errors, never raised; and one file by itself."""
    for error in read_results(file.parent.parent)[2]:
        if not isinstance(error, UserError):
            raise TypeError(f"{error!r} among the errors")
    if file.suffix == ".json":
        query_rows(read_result(file))


def read_run_folder(file: Path) -> None:
    """A run's manifest and its lines, as commands and the board read them."""
    list(training_runs(file.parent.parent))
    read_run(file.parent)
    newest_run("encoder", file.parent.parent)


def read_model(load_model: Callable) -> Callable[[Path], None]:
    """A model folder, one file of which is damaged."""

    def read(file: Path) -> None:
        folder = file.parent.parent if file.parent.name == "1_Pooling" else file.parent
        load_model(str(folder))

    return read


def body_of(client: TestClient, route: str) -> Callable[[Path], None]:
    """A request with the file as its body; an error is raised with what the answer says, if it says enough."""

    def read(file: Path) -> None:
        answer = client.post(route, content=file.read_bytes(), headers={"Content-Type": "application/json"})
        if answer.status_code >= 500:
            raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
        if answer.status_code >= 400:
            error = answer.json()["error"]
            if not (error["code"] and error["message"]):
                raise RuntimeError(f"an error without words: {error}")
            raise RowError(error["code"], "see there", error["message"])

    return read


def seeds(folder: Path) -> list[tuple[str, Path, Callable[[Path], None]]]:
    """Good files to start from: (name, file, reader)."""
    rows = (DEMO / "triplets.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(("\n".join(rows)).encode()))
    shutil.copy(ROOT / "v1.1" / "recipes" / "demo.yaml", folder / "recipe.yaml")
    recipe = "train_data: [demo]\ntemperature: 0.05\nmax_seq_length: 64\ndropout: 0.1\nchunk_tokens: auto\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    task = folder / "task"
    (task / "qrels").mkdir(parents=True)
    corpus = (DEMO / "beir" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    ids = [json.loads(line)["_id"] for line in corpus]
    (task / "corpus.jsonl").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    queries = [{"_id": f"q{n}", "text": f"질문 {n}"} for n in range(3)]
    text = "".join(json.dumps(query, ensure_ascii=False) + "\n" for query in queries)
    (task / "queries.jsonl").write_text(text, encoding="utf-8")
    lines = "".join(f"q{n}\t{ids[n]}\t1\n" for n in range(3))
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines, encoding="utf-8")
    qas = [{"id": "1", "question": "수도는 어디인가요?", "answers": [{"text": "서울", "answer_start": 0}]}]
    paragraphs = [{"context": "서울은 수도이다. 한강이 흐른다.", "qas": qas}]
    squad = {"data": [{"title": "제목", "paragraphs": paragraphs}]}
    (folder / "squad.json").write_text(json.dumps(squad, ensure_ascii=False), encoding="utf-8")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("안/squad.json", json.dumps(squad, ensure_ascii=False))
    (folder / "squad.zip").write_bytes(packed.getvalue())
    with tarfile.open(folder / "squad.tar.gz", "w:gz") as archive:
        archive.add(folder / "squad.json", "안/squad.json")
    pq.write_table(pa.Table.from_pylist([json.loads(row) for row in rows]), folder / "rows.parquet")
    book = openpyxl.Workbook()
    for line in (["question", "answer", "doc_id", "doc"], ["수도는?", "서울", 1, "서울은 수도이다"]):
        book.active.append(line)
    book.save(folder / "rows.xlsx")
    (folder / "rows.csv").write_text("question,answer,doc_id,doc\n수도는?,서울,1,서울은 수도이다\n", encoding="utf-8")
    pipeline = {"first_stage": "bm25", "reranker": None, "depth": 10}
    (folder / "pipeline.json").write_text(json.dumps(pipeline), encoding="utf-8")
    found = [
        ("rows", folder / "rows.jsonl", read_rows),
        ("rows, gzipped", folder / "rows.jsonl.gz", read_rows),
        ("rows, Parquet", folder / "rows.parquet", read_rows),
        ("recipes", folder / "recipe.yaml", read_recipe),
        ("tasks: corpus", task / "corpus.jsonl", read_task),
        ("tasks: queries", task / "queries.jsonl", read_task),
        ("tasks: qrels", task / "qrels" / "test.tsv", read_task),
        ("sources: json", folder / "squad.json", read_source("squad")),
        ("sources: zip", folder / "squad.zip", read_source("squad")),
        ("sources: tar", folder / "squad.tar.gz", read_source("squad")),
        ("sources: csv", folder / "rows.csv", read_source("csv")),
        ("sources: xlsx", folder / "rows.xlsx", read_source("csv")),
        ("pipelines", folder / "pipeline.json", lambda file: read_pipeline(str(file))),
    ]
    return found + result_seeds(folder / "results") + model_seeds(folder) + request_seeds(folder / "bodies")


def result_seeds(folder: Path) -> list[tuple[str, Path, Callable[[Path], None]]]:
    """A published table, and the result of one first stage."""
    published = folder / "published"
    shutil.copytree(ROOT / "results" / "published", published)
    table, expected = sorted(published.glob("*.json"))[0], folder / "expected.json"
    shutil.copy(ROOT / "results" / "expected" / "demo.json", expected)
    from koir.evaluation import pipeline
    from koir.evaluation.results import write_result
    from koir.retrieval import stages

    task = load_task("demo", "dev")
    done = pipeline.evaluate_first_stage(stages.first_stage("bm25"), task, pipeline.Pipeline("bm25"))
    file = write_result(folder / "bm25", done.content, done.run, task.qrels)
    return [
        ("results: published", table, lambda file: read_results_folder(file)),
        ("results: ours", file, read_results_folder),
        ("results: queries", folder / "bm25" / "demo.queries.jsonl", read_results_folder),
        ("results: expected", expected, lambda file: read_cells(str(file))),
    ]


def model_seeds(folder: Path) -> list[tuple[str, Path, Callable[[Path], None]]]:
    """A run, an encoder's and a reranker's folder, an index's manifest, a server's list of models."""
    encoder, run, index = folder / "models" / "encoder", folder / "runs" / "one", folder / "index"
    tiny_encoder().save(encoder)
    tiny_reranker(folder / "models" / "reranker")
    for place in (run, index):
        place.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"kind": "encoder", "base": "demo", "steps": 3}))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n')
    facts = {"kind": "index", "first_stage": "bm25", "fusion": "rrf", "weight": None, "documents": 1}
    (index / "run.json").write_text(json.dumps(facts | {"corpus_fingerprint": "0" * 64}))
    models = folder / "models.yaml"
    models.write_text("- {name: one, encoder: /nothing/one}\n- {name: two, reranker: /nothing/two}\n")
    names = ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]
    names += ["config_sentence_transformers.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]
    return [
        ("runs: run.json", run / "run.json", read_run_folder),
        ("runs: metrics.jsonl", run / "metrics.jsonl", read_run_folder),
        ("indexes: run.json", index / "run.json", lambda file: open_index(str(file.parent))),
        ("a server's models", models, lambda file: _from_file(Loader(ServedArguments(models=str(file))), file)),
        *[(f"encoders: {Path(name).name}", encoder / name, read_model(load_encoder)) for name in names],
        ("rerankers: config.json", folder / "models" / "reranker" / "config.json", read_model(load_reranker)),
    ]


def request_seeds(folder: Path) -> list[tuple[str, Path, Callable[[Path], None]]]:
    """Bodies for every route that takes one, and a server in this process to send them to."""
    folder.mkdir()
    tiny_encoder().save(folder / "encoder")
    tiny_reranker(folder / "reranker")
    app = create_app(load(ServedArguments(f"dense:{folder / 'encoder'}", str(folder / "reranker"), dtype="float32")))
    client, found = TestClient(app, raise_server_exceptions=False), []
    query, texts = "수도는?", ["서울", "한강이 흐른다"]
    bodies = {
        "/v1/rerank": {"model": "m", "query": query, "documents": [*texts, {"text": "산"}], "top_n": 2},
        "/rerank": {"query": query, "texts": texts, "raw_scores": True, "truncate": True},
        "/v1/score": {"text_1": query, "text_2": texts, "truncate_prompt_tokens": 64},
        "/v1/embeddings": {"input": texts, "encoding_format": "float", "dimensions": 8, "input_type": "query"},
    }
    for number, (route, body) in enumerate(bodies.items()):
        file = folder / f"{number}.json"
        file.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
        found.append((f"bodies: {route}", file, body_of(client, route)))
    return found


def main(argv: list[str] | None = None) -> int:
    """Print a table of outcomes; 1 when a foreign exception came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose names begin so")
    settings = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    rng, counts, foreign = random.Random(settings.seed), {}, {}
    with tempfile.TemporaryDirectory() as place:
        known = [seed for seed in seeds(Path(place)) if seed[0].startswith(settings.only)]
        for _, file, read in known:  # what is not damaged is read, or is refused as the text of the seed says
            with contextlib.suppress(UserError):
                read(file)
        for number in progress_bar("damaged", range(settings.inputs), unit="input"):
            name, file, read = known[number % len(known)]
            good = file.read_bytes()
            damage = of_yaml if file.suffix == ".yaml" and rng.random() < 0.5 else damaged
            file.write_bytes(damage(good, rng))
            outcome = "read"
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    read(file)
            except UserError as error:
                outcome = "refused" if error.place and error.expected else "refused without a word"
                if error.place == "memory":
                    foreign.setdefault(f"{name}: all memory", file.read_bytes()[:300])
            except Exception as error:
                outcome = "FOREIGN"
                foreign.setdefault(f"{name}: {type(error).__name__}: {str(error)[:120]}", file.read_bytes()[:300])
            counts.setdefault(name, Counter())[outcome] += 1
            file.write_bytes(good)
    for name, outcomes in counts.items():
        print(f"{name:<24}", ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items())))
    for words, data in foreign.items():
        print(f"  {words}\n    {data!r}")
    lost = [*foreign, *(f"{n}: an error without place" for n, c in counts.items() if c["refused without a word"])]
    print(json.dumps({"what": "mutated input", "tried": settings.inputs, "losses": lost}, ensure_ascii=False))
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
