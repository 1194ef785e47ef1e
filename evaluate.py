"""Score first stages and rerankers together on Korean retrieval; without arguments: the newest runs on the demo."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

try:
    from koir.arguments import parse, require
except ModuleNotFoundError as missing:
    sys.exit(f"error: {missing.name} is not installed here; run: bash scripts/setup.sh && .venv/bin/python evaluate.py")

import torch

from koir.bfloat16 import or_float32
from koir.errors import RunError, exit_on_user_error
from koir.evaluation import report, reproduction
from koir.evaluation.hub import BENCHMARKS
from koir.evaluation.joint import Joint, Settings, sampled
from koir.evaluation.picture import picture
from koir.evaluation.pipeline import read_pipeline
from koir.evaluation.results import file_stem
from koir.evaluation.tasks import Task, load_task, splits
from koir.gather import rank
from koir.manifest import check_outputs, newest_run, origin, read_run, write_json, written_aside
from koir.retrieval.hybrid import DENSE_SHARE
from koir.retrieval.ranking import SCALES
from koir.retrieval.score_maps import SCORE_MAPS
from koir.retrieval.stages import FUSIONS, join_processes


@dataclass
class EvaluateArguments:
    """What is scored."""

    first_stage: list[str] = field(
        default_factory=list,
        metadata={
            "help": "bm25, dense:PATH, hybrid:PATH, milvus:PATH (run folder, model folder, hub name, demo); default: "
            "bm25, the newest run (else demo) and its base, and its hybrid"
        },
    )
    reranker: list[str] = field(
        default_factory=list,
        metadata={
            "help": "none, or PATHs of cross-encoders; each first stage is scored alone too; default: none, or without "
            "--first_stage the newest run (beside demo: demo)"
        },
    )
    depth: list[int] = field(
        default_factory=lambda: [50],
        metadata={
            "help": "candidates handed to the reranker; several are all scored; where a task gives the candidates "
            "(MIRACLReranking), it is handed all of them"
        },
    )
    fusion: str = field(default="weighted", metadata={"help": "of hybrid and milvus: weighted, or rrf (k = 60)"})
    weight: str | None = field(
        default=None,
        metadata={
            "help": "of --fusion weighted: W in (1 - W) x BM25 + W x 25 x cosine, 0 to 1, or auto: chosen on dev; "
            f"default: {DENSE_SHARE}"
        },
    )
    interpolate: str | None = field(
        default=None,
        metadata={
            "help": "also score a mixture with the first stage: the reranker's share, 0 to 1, or auto: the best on dev "
            "that makes no dev task worse, 0 where it gains less than a standard error; default: no mixture"
        },
    )
    normalise: str = field(
        default="minmax",
        metadata={
            "help": "how --interpolate brings both scores to one scale: minmax, z, or raw: as they are, which keeps "
            "how sure bm25 and weighted hybrids are"
        },
    )
    score_map: str = field(
        default="sigmoid",
        metadata={
            "help": "how a server shows scores, saved in pipeline.json: sigmoid, raw, exp_normalize (softmax over the "
            "candidates: not comparable between queries); ranking is by raw logits always"
        },
    )
    passage_tokens: int | None = field(
        default=None,
        metadata={
            "help": "rerankers read longer documents in passages of so many tokens, a quarter of each also in the one "
            "before, and the best counts; default: their beginnings, as far as the reranker reads"
        },
    )
    pipeline: str | None = field(
        default=None, metadata={"help": "a pipeline.json, in place of the flags above; default: none"}
    )
    index_uri: str | None = field(
        default=None, metadata={"help": "folder where indexes are kept, or a Milvus cluster's URI; default: the cache"}
    )


@dataclass
class TaskArguments:
    """On what, and where results go."""

    tasks: list[str] = field(
        default_factory=list, metadata={"help": "BEIR folders, demo, or mteb's Korean tasks by name; default: demo"}
    )
    benchmark: str | None = field(
        default=None, metadata={"help": "koe5 (three tasks) or kor-v2 (nine), in place of --tasks; default: none"}
    )
    data_root: str | None = field(
        default=None, metadata={"help": "copies of mteb's dataset repositories, by hub name; default: ask the hub"}
    )
    split: str = field(default="test", metadata={"help": "split of every task (mteb's tasks may have but one)"})
    dev_tasks: list[str] = field(
        default_factory=list, metadata={"help": "where `auto` is chosen; default: the --tasks that have a dev split"}
    )
    dev_queries: int = field(default=300, metadata={"help": "queries of each dev split that `auto` looks at"})
    output_dir: str = field(default="results", metadata={"help": "where <pipeline>/<task>.json goes"})
    json: str | None = field(default=None, metadata={"help": "also write all results to this file"})
    reproduce: str | None = field(
        default=None, metadata={"help": "compare with published cells, results/published/*.json; default: no"}
    )
    check: str | None = field(
        default=None,
        metadata={
            "help": "like --reproduce, and exit with 1 where a cell is off; without --first_stage, what a file of "
            "results/expected/ names is measured anew, and nothing is kept; default: no"
        },
    )
    tolerance: float | None = field(
        default=None, metadata={"help": "how far a cell may be off, scores from 0 to 1; default: the file's"}
    )
    bf16: bool = field(
        default=False,
        metadata={"help": "rerankers multiply in bfloat16 where the chip has it: faster, logits move by about 0.01"},
    )
    whole: bool = field(default=False, init=False)  # whether every cell of --check has to be measured


@exit_on_user_error
def main(argv: list[str] | None = None) -> list[dict]:
    """Evaluate, print a table a task, write results; returns the results' JSON contents."""
    what, where = parse([EvaluateArguments, TaskArguments], argv, __doc__, recipes=False)
    _check(what, where)
    with _as_the_file_asks(what, where):
        return _evaluate(what, where)


@contextlib.contextmanager
def _as_the_file_asks(what: EvaluateArguments, where: TaskArguments) -> Iterator[None]:
    """--check alone measures what its file names, and anew: in a folder that is gone afterwards."""
    asked = reproduction.asked(where.check) if where.check and what == EvaluateArguments() else None
    if asked is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        what.first_stage, where.tasks = asked
        what.index_uri, where.output_dir, where.whole = f"{folder}/indexes", f"{folder}/results", True
        yield


def _evaluate(what: EvaluateArguments, where: TaskArguments) -> list[dict]:
    cells = {name: reproduction.read_cells(name) for name in filter(None, [where.reproduce, where.check])}
    settings = _settings(what)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings.bf16 = or_float32(where.bf16, device, "--bf16")
    names = BENCHMARKS[where.benchmark] if where.benchmark else where.tasks or ["demo"]
    tasks = [load_task(name, where.split, where.data_root) for name in names]
    called = [task.name for task in tasks]
    for name in called:
        once = called.count(name) == 1 and name not in ("run", "pipeline")  # which are files beside results
        require(once, "--tasks", f"a folder named {name}, twice or as a file beside results is", "another name")
    output, started = Path(where.output_dir), time.perf_counter()
    joint = Joint(settings, _dev_tasks(settings, where, names), output)
    if join_processes():
        joint.build(tasks)
        if rank() > 0:
            return []
    found = []
    for task in tasks:
        found.append([row.content for row in joint.evaluate(task)])
        print(f"\n{report.terminal(found[-1])}", flush=True)
        stem = file_stem(output / found[-1][0]["koir"]["name"], task.name, task.split)
        _write_text(output / f"{stem}.svg", picture(found[-1]))
    _write_text(output / "report.md", report.markdown(found))
    contents = [content for rows in found for content in rows]
    _write_pipelines(output, contents, {"tasks": names, "split": where.split}, started)
    if where.json:
        write_json(Path(where.json), contents)
    print(f"\nresults: {where.output_dir}/   all metrics: {output / 'report.md'}   pictures: {output}/<task>.svg")
    return _against(cells, contents, where)


def _check(what: EvaluateArguments, where: TaskArguments) -> None:
    check_outputs(where.output_dir, where.json)
    for flag, value, known in (
        ("--fusion", what.fusion, FUSIONS),
        ("--normalise", what.normalise, SCALES),
        ("--score_map", what.score_map, SCORE_MAPS),
        ("--benchmark", where.benchmark or "koe5", BENCHMARKS),
    ):
        require(value in known, f"{flag} {value}", "an unknown value", " or ".join(known))
    require(not (where.benchmark and where.tasks), "--benchmark and --tasks", "both", "one of them")
    for flag, value in (("--weight", what.weight), ("--interpolate", what.interpolate)):
        require(value in (None, "auto") or _share(value) is not None, f"{flag} {value}", "no share", "auto, or 0 to 1")
    require(what.fusion == "weighted" or what.weight is None, "--weight", str(what.weight), "--fusion weighted with it")
    fused = not what.first_stage or any(spec.startswith(("hybrid:", "milvus:")) for spec in what.first_stage)
    require(fused or what.weight is None, "--weight", str(what.weight), "a hybrid or milvus first stage with it")
    require(min(what.depth, default=0) > 0, "--depth", str(what.depth), "numbers above 0")
    reranked = not what.first_stage or any(path != "none" for path in what.reranker)
    require(reranked or what.interpolate is None, "--interpolate", str(what.interpolate), "--reranker with it")
    if (tokens := what.passage_tokens) is not None:
        require(reranked, "--passage_tokens", str(tokens), "--reranker with it")
        require(tokens > 0, f"--passage_tokens {tokens}", "no length", "a number above 0")
    require(where.dev_queries > 0, "--dev_queries", str(where.dev_queries), "a number above 0")
    given = EvaluateArguments(pipeline=what.pipeline, index_uri=what.index_uri)
    require(what.pipeline is None or what == given, "--pipeline", "other flags that choose a pipeline", "it alone")
    if reranked and what.depth and min(what.depth) < 10:
        print(f"note: with --depth {min(what.depth)} a list ends after so many, so that @10 cannot be held against "
              "the first stage's", file=sys.stderr)  # fmt: skip


def _share(text: str) -> float | None:
    try:
        return float(text) if 0 <= float(text) <= 1 else None
    except ValueError:
        return None


def _settings(what: EvaluateArguments) -> Settings:
    if what.pipeline:
        one = read_pipeline(what.pipeline)
        index_uri = what.index_uri or one.index_uri
        rerankers = [one.reranker] if one.reranker else []
        weights = {"weight": one.weight, "interpolate": one.interpolate, "normalise": one.normalise or "minmax"}
        return Settings([one.first_stage], rerankers, [one.depth], index_uri, one.fusion or "weighted",
                        score_map=one.score_map or "sigmoid", chosen_on=one.chosen_on,
                        passage_tokens=one.passage_tokens, **weights)  # fmt: skip
    stages = list(dict.fromkeys(what.first_stage))
    rerankers = [path for path in dict.fromkeys(what.reranker) if path != "none"]
    if not stages:
        stages, untrained = _newest_stages()
        rerankers = rerankers if what.reranker else _newest_reranker() or untrained
    weight, interpolate = (
        _share(text) if text not in (None, "auto") else text for text in (what.weight, what.interpolate)
    )
    return Settings(stages, rerankers, what.depth, what.index_uri, what.fusion, weight, interpolate, what.normalise,
                    what.score_map, passage_tokens=what.passage_tokens)  # fmt: skip


def _newest_stages() -> tuple[list[str], list[str]]:
    """First stages of the newest encoder run, and the rerankers to take where none was trained: the demo's for demo."""
    try:
        run = newest_run("encoder")
    except RunError as error:
        print(f"default: demo, since {error}", file=sys.stderr)
        return ["bm25", "dense:demo", "hybrid:demo"], ["demo"]
    return ["bm25", f"dense:{read_run(run, base=str)['base']}", f"dense:{run}", f"hybrid:{run}"], []


def _newest_reranker() -> list[str]:
    try:
        return [str(newest_run("reranker"))]
    except RunError:
        return []


def _dev_tasks(settings: Settings, where: TaskArguments, names: list[str]) -> list[Task]:
    """The dev splits that `auto` is chosen on, none where nothing is to be chosen."""
    if "auto" not in (settings.weight, settings.interpolate):
        return []
    require(
        where.split != "dev" or bool(where.dev_tasks), "--split dev", "auto", "weights chosen elsewhere: --dev_tasks"
    )
    if where.split == "dev":
        both = ", ".join(set(where.dev_tasks) & set(names))
        require(not both, f"--split dev --dev_tasks {both}", "what is scored", "other tasks to choose on")
    chosen = where.dev_tasks or [name for name in names if "dev" in splits(name) and "test" in splits(name)]
    return [sampled(load_task(name, "dev", where.data_root), where.dev_queries) for name in dict.fromkeys(chosen)]


def _write_text(file: Path, text: str) -> None:
    with written_aside(file) as aside:
        aside.write_text(text, encoding="utf-8")


def _write_pipelines(output: Path, contents: list[dict], facts: dict, started: float) -> None:
    """pipeline.json and, last, run.json of every pipeline."""
    facts = facts | {"kind": "evaluation", "wall_seconds": time.perf_counter() - started} | origin()
    for koir in {content["koir"]["name"]: content["koir"] for content in contents}.values():
        write_json(output / koir["name"] / "pipeline.json", koir["pipeline"])
        write_json(output / koir["name"] / "run.json", {"pipeline": koir["pipeline"]} | facts)


def _against(cells: dict, contents: list[dict], where: TaskArguments) -> list[dict]:
    """Print how the results stand to published or expected cells; exit with 1 where --check finds one off."""
    for file, of_file in cells.items():
        rows = reproduction.compared(of_file, contents, where.tolerance)
        print(f"\n{file}:\n" + "\n".join(reproduction.lines(rows, len(of_file))))
        least = len(of_file) if where.whole else 1
        if file == where.check and (len(rows) < least or not all(row["ok"] for row in rows)):
            raise SystemExit(1)
    return contents


if __name__ == "__main__":
    main()
