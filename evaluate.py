"""Score first stages on Korean retrieval tasks; without arguments: the newest run, its base and BM25 on the demo."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

try:
    from koir.arguments import parse
except ModuleNotFoundError as missing:
    sys.exit(f"error: {missing.name} is not installed here; run: bash scripts/setup.sh && .venv/bin/python evaluate.py")

from koir.errors import exit_on_user_error
from koir.evaluation import pipeline
from koir.evaluation.results import SCORE_HEADER, file_name, score_row, table, write_result
from koir.evaluation.tasks import load_task
from koir.manifest import newest_run, origin, read_run, write_json
from koir.retrieval.stages import first_stage


@dataclass
class EvaluateArguments:
    """What is scored on what."""

    first_stage: list[str] = field(
        default_factory=list,
        metadata={
            "help": "bm25, dense:PATH (run folder, model folder, hub name, demo); default: newest run, its base, bm25"
        },
    )
    tasks: list[str] = field(default_factory=lambda: ["demo"], metadata={"help": "BEIR folders, or demo"})
    split: str = field(default="test", metadata={"help": "split of every task"})
    output_dir: str = field(default="results", metadata={"help": "where <pipeline>/<task>.json goes"})
    json: str | None = field(default=None, metadata={"help": "also write all results to this file"})


@exit_on_user_error
def main(argv: list[str] | None = None) -> list[dict]:
    """Evaluate, print a table a task, write results; returns the results' JSON contents."""
    (arguments,) = parse([EvaluateArguments], argv, __doc__, recipes=False)
    stages = arguments.first_stage
    if not stages:
        run = newest_run("encoder")
        stages = ["bm25", f"dense:{read_run(run)['base']}", f"dense:{run}"]
    tasks = [load_task(path, arguments.split) for path in arguments.tasks]
    indexes = {stage: first_stage(stage) for stage in dict.fromkeys(stages)}
    started, provenance, contents = time.perf_counter(), origin(), []
    for task in tasks:
        rows, done = [], {}
        for stage, index in indexes.items():
            done[stage] = pipeline.evaluate_first_stage(index, task, stage)
            folder = Path(arguments.output_dir) / file_name(stage)
            write_result(folder, done[stage].content, done[stage].run, task.qrels)
            contents.append(done[stage].content)
            ms = done[stage].content["koir"]["milliseconds_per_query"]
            versus = (
                "" if stage == stages[0] else "{:+.3f} p={:.3f}".format(*pipeline.compare(done[stage], done[stages[0]]))
            )
            rows.append([*score_row(stage, done[stage].content), f"{ms:.1f}", versus])
        print(f"\n{task.name}, {task.split}: {len(task.queries):,} queries, {len(task.corpus):,} documents")
        print(table([*SCORE_HEADER, "ms/query", f"nDCG@10 to {stages[0]}"], rows))
    for stage in indexes:
        folder = Path(arguments.output_dir) / file_name(stage)
        write_json(folder / "pipeline.json", {"first_stage": stage, "reranker": None, "depth": pipeline.DEPTH})
        facts = {"kind": "evaluation", "first_stage": stage, "tasks": arguments.tasks, "split": arguments.split}
        write_json(folder / "run.json", facts | {"wall_seconds": time.perf_counter() - started} | provenance)
    if arguments.json:
        write_json(Path(arguments.json), contents)
    print(f"\nresults: {arguments.output_dir}/")
    return contents


if __name__ == "__main__":
    main()
