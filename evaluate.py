"""Score first stages and rerankers together on Korean retrieval; without arguments: the newest runs on the demo."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from koir.flags import parse, require  # first: koir says what is not installed

# isort: split
import torch

from koir.errors import RunError, exit_on_user_error
from koir.evaluation import report, reproduction
from koir.evaluation.arguments import EvaluateArguments, TaskArguments, check, share
from koir.evaluation.hub import BENCHMARKS
from koir.evaluation.joint import Joint, Settings, sampled
from koir.evaluation.picture import picture
from koir.evaluation.pipeline import read_pipeline
from koir.evaluation.results import file_stem
from koir.evaluation.tasks import Task, load_task, splits
from koir.gather import leave_processes, rank
from koir.kernels.bfloat16 import or_float32
from koir.manifest import check_outputs, model_folder, newest_run, origin, read_run, write_json, write_text
from koir.retrieval.stages import join_processes, kind_and_path


@exit_on_user_error
def main(argv: list[str] | None = None) -> list[dict]:
    """Evaluate, print a table a task, write results; returns the results' JSON contents."""
    what, where = parse([EvaluateArguments, TaskArguments], argv, __doc__, recipes=False)
    check(what, where)
    with _as_the_file_asks(what, where):
        return _evaluate(what, where)


@contextlib.contextmanager
def _as_the_file_asks(what: EvaluateArguments, where: TaskArguments) -> Iterator[None]:
    """--check alone measures what its file names, and anew: in a folder that is gone afterwards."""
    asked = reproduction.asked(where.check) if where.check and what == EvaluateArguments() else None
    if asked is None:
        yield
        return
    for name in ("tasks", "benchmark", "split", "output_dir"):
        idle = getattr(where, name) == getattr(TaskArguments(), name)
        require(
            idle, f"--check and --{name}", "both", f"one of them, or --first_stage: {where.check} says what is scored"
        )
    with tempfile.TemporaryDirectory() as folder:
        if join_processes():  # in one folder, the first's
            torch.distributed.broadcast_object_list(names := [folder])
            folder = names[0]
        what.first_stage, where.tasks = asked
        what.index_uri, where.output_dir, where.whole = f"{folder}/indexes", f"{folder}/results", True
        yield


def _evaluate(what: EvaluateArguments, where: TaskArguments) -> list[dict]:
    check_outputs(where.output_dir, where.json)
    cells = {name: reproduction.read_cells(name) for name in filter(None, [where.reproduce, where.check])}
    settings = _settings(what)
    for path in [*(kind_and_path(spec)[1] for spec in settings.first_stages), *settings.rerankers]:
        if path:
            model_folder(path)  # the last one may be hours away
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings.bf16 = or_float32(where.bf16, device, "--bf16")
    names = BENCHMARKS[where.benchmark] if where.benchmark else where.tasks or ["demo"]
    tasks = [load_task(name, where.split, where.data_root) for name in names]
    called = [task.name for task in tasks]
    for name in called:
        once = called.count(name) == 1 and name not in ("run", "pipeline")  # which are files beside results
        require(once, "--tasks", f"a folder named {name}, twice or as a file beside results is", "another name")
    for name in sorted({f"{task.name}/{task.split}" for task in tasks} & set(settings.chosen_on or ())):
        print(f"note: {what.pipeline} was chosen on {name}: its score there is no test", file=sys.stderr)
    output, started = Path(where.output_dir), time.perf_counter()
    joint = Joint(settings, _dev_tasks(settings, where, names, tasks), output)
    if join_processes():
        joint.build(tasks)
        number = rank()
        leave_processes()  # the first goes on alone
        if number > 0:
            return []
    found = []
    for task in tasks:
        found.append([row.content for row in joint.evaluate(task)])
        print(f"\n{report.terminal(found[-1])}", flush=True)
        stem = file_stem(output / found[-1][0]["koir"]["name"], task.name, task.split)
        write_text(output / f"{stem}.svg", picture(found[-1]))
    write_text(output / "report.md", report.markdown(found))
    contents = [content for rows in found for content in rows]
    _write_pipelines(output, contents, {"tasks": names, "split": where.split}, started)
    if where.json:
        write_json(Path(where.json), contents)
    if not where.whole:
        print(f"\nresults: {where.output_dir}/   all metrics: {output / 'report.md'}   pictures: {output}/<task>.svg")
    return _against(cells, contents, where)


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
        share(text) if text not in (None, "auto") else text for text in (what.weight, what.interpolate)
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


def _dev_tasks(settings: Settings, where: TaskArguments, names: list[str], scored: list[Task]) -> list[Task]:
    """The dev splits that `auto` is chosen on, none where nothing is to be chosen; no query of theirs is scored."""
    if "auto" not in (settings.weight, settings.interpolate):
        return []
    require(
        where.split != "dev" or bool(where.dev_tasks), "--split dev", "auto", "weights chosen elsewhere: --dev_tasks"
    )
    chosen = where.dev_tasks or [name for name in names if "dev" in splits(name) and "test" in splits(name)]
    found, asked = {}, {text for task in scored for text in task.queries.values()}
    for name in dict.fromkeys(chosen):
        there = splits(name)
        require("dev" in there or not there, f"--dev_tasks {name}", f"{', '.join(there)}", "a task with a dev split")
        dev = load_task(name, "dev", where.data_root)
        fresh = {query: text for query, text in dev.queries.items() if text not in asked}
        for task in scored:  # by what they hold: a path is written in many ways, and a split may stand for another
            both = dev.queries.items() & task.queries.items()
            what = f"{len(both)} queries that are scored, of {task.name}/{task.split}"
            require(not both, f"--split {where.split} --dev_tasks {name}", what, "other tasks to choose on")
        left = len(dev.queries) - len(fresh)
        require(bool(fresh), f"--dev_tasks {name}", f"{left:,} queries, all with scored texts", "other tasks")
        if left:
            print(f"note: {left:,} queries of {name}/dev are scored too; nothing is chosen on them", file=sys.stderr)
        found[name] = sampled(replace(dev, queries=fresh), where.dev_queries)
    return list(found.values())


def _write_pipelines(output: Path, contents: list[dict], facts: dict, started: float) -> None:
    """pipeline.json and, last, run.json of every pipeline."""
    facts = facts | {"kind": "evaluation", "wall_seconds": time.perf_counter() - started} | origin()
    for koir in {content["koir"]["name"]: content["koir"] for content in contents}.values():
        folder = output / koir["name"]
        write_json(folder / "pipeline.json", koir["pipeline"])
        tasks = list(dict.fromkeys([*facts["tasks"], *_earlier_tasks(folder)]))
        write_json(folder / "run.json", {"pipeline": koir["pipeline"]} | facts | {"tasks": tasks})


def _earlier_tasks(folder: Path) -> list[str]:
    """The tasks that earlier commands left results of in a pipeline's folder: the board looks there for texts."""
    try:
        return [task for task in read_run(folder, tasks=list)["tasks"] if isinstance(task, str)]
    except RunError:
        return []


def _against(cells: dict, contents: list[dict], where: TaskArguments) -> list[dict]:
    """Print how the results stand to published or expected cells; exit with 1 where --check finds one off."""
    for file, of_file in cells.items():
        rows = reproduction.compared(of_file, contents, where.tolerance)
        print(f"\n{file}:\n" + "\n".join(reproduction.lines(rows, of_file)))
        least = len(of_file) if where.whole else 1
        if file == where.check and (len(rows) < least or not all(row["ok"] for row in rows)):
            raise SystemExit(1)
    return contents


if __name__ == "__main__":
    main()
