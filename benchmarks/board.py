"""First paint of the board in a real Chromium, with 500 result files.

    .venv/bin/python benchmarks/board.py [--files 500] [--tasks 10] [--queries 100] [--loads 7] [--json FILE]

Made-up pipelines (--files over --tasks of them) are written to a temporary folder, Streamlit serves them as
`streamlit run leaderboard.py` does, and Chromium (KOIR_BROWSER, else chromium) opens the page again and again, each
time as a visitor without a cache. Milliseconds from the click to: the browser's first contentful paint, the first row
of the ranking, the bars, and the end of the script, with ranks tested for ties. Streamlit's own start is no paint and
is given apart; so is the first load after it, which reads all the files and imports what the page needs.
"""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from koir.evaluation.metrics import evaluate_run  # noqa: E402
from koir.evaluation.results import result, write_result  # noqa: E402
from koir.manifest import write_json  # noqa: E402

MARKS = {
    "table": ".koir-table tbody tr",
    "bars": "[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg",
}
PAINT = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0]"
DONE = "document.querySelector('[data-test-script-state=notRunning]') && document.querySelector('.koir-table td')"


def write_results(folder: Path, files: int, tasks: int, queries: int) -> None:
    """So many result files over so many tasks, with 20 documents a query; quality grows with the pipeline's number."""
    draw = random.Random(0)
    answers = {f"q{number}": {f"d{number}": 1} for number in range(queries)}
    for number in range(-(-files // tasks)):
        name = f"dense-run-{number // 4:02d}" + (
            "" if number % 4 == 0 else f"+reranker@{(20, 50, 100)[number % 4 - 1]}"
        )
        reranker = "outputs/reranker" if "+" in name else None
        pipeline = {"first_stage": f"dense:outputs/run-{number // 4:02d}", "reranker": reranker, "depth": 100}
        for task in range(min(tasks, files - number * tasks)):
            run = {query: _ranking(draw, query, 0.3 + 0.01 * number) for query in answers}
            block = {"name": name, "pipeline": pipeline, "task_fingerprint": f"task-{task}", "candidate_recall": 0.9}
            block |= {"comparisons": [], "milliseconds_per_query": 10.0 + number, "parameters": 10**8}
            content = result(f"Task{task:02d}Retrieval", "test", evaluate_run(answers, run), 1.0, block)
            write_result(folder / name, content, run, answers)
        write_json(folder / name / "pipeline.json", pipeline)
        write_json(folder / name / "run.json", {"tasks": []})


def _ranking(draw: random.Random, query: str, quality: float) -> dict[str, float]:
    others = [f"x{number}" for number in draw.sample(range(1000), 20)]
    if draw.random() < 0.9:
        others.insert(0 if draw.random() < quality else draw.randrange(1, 15), query.replace("q", "d"))
    return {document: 20.0 - place for place, document in enumerate(others)}


class Board:
    """Streamlit with the page, from its start to its end; seconds: until it answered."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, "-m", "streamlit", "run", "leaderboard.py", "--server.headless=true"]
        words += [f"--server.port={port}", "--", "--results", str(folder), "--outputs", str(folder / "none")]
        started, self.url = time.perf_counter(), f"http://127.0.0.1:{port}/"
        with (folder.parent / "log").open("w") as log:
            self.process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)
        while True:
            try:
                urllib.request.urlopen(self.url + "_stcore/health", timeout=5).read()
                break
            except OSError:
                if self.process.poll() is not None:
                    sys.exit((folder.parent / "log").read_text())
                time.sleep(0.05)
        self.seconds = time.perf_counter() - started

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(20)


def opened(browser, url: str, rows: int) -> dict[str, float]:
    """Milliseconds of one load by a new visitor."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(120_000)
    page = context.new_page()
    started = time.perf_counter()
    since = lambda: 1000 * (time.perf_counter() - started)  # noqa: E731
    page.goto(url, wait_until="commit")
    found = {}
    for name, selector in MARKS.items():
        page.wait_for_selector(selector)
        found[name] = since()
    page.wait_for_function(DONE)
    found["script_done"] = since()
    there = page.locator(".koir-table").first.locator("tbody tr").count()
    if there != rows:
        sys.exit(f"{there} rows on the page, {rows} pipelines on disk")
    found = {"first_contentful": page.evaluate(PAINT)} | found
    context.close()
    return found


def main() -> None:
    """Print what was found, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("files", 500), ("tasks", 10), ("queries", 100), ("loads", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    program = os.environ.get("KOIR_BROWSER") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("error: no chromium (Debian: apt-get install -y chromium), and no KOIR_BROWSER=/path/to/one")
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "results"
        write_results(folder, given.files, given.tasks, given.queries)
        rows = -(-given.files // given.tasks)
        with Board(folder) as board, sync_playwright() as play:
            browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
            blank = browser.new_context().new_page()
            blank.goto("about:blank")  # the browser's own start is no paint of ours
            loads = [opened(browser, board.url, rows) for _ in range(given.loads)]
            version = browser.version
            browser.close()
    later = {name: statistics.median(load[name] for load in loads[1:]) for name in loads[0]}
    found = {"files": given.files, "pipelines": rows, "tasks": given.tasks, "queries": given.queries}
    found |= {"chromium": version, "cores": os.cpu_count(), "streamlit_start_ms": 1000 * board.seconds}
    found |= {"first_load_ms": loads[0], "later_loads_ms": loads[1:], "later_median_ms": later}
    print(f"streamlit answers after {board.seconds:.1f} s; milliseconds of a load:")
    for name, load in (("first", loads[0]), (f"median of {len(loads) - 1} later", later)):
        print(f"  {name}: " + ", ".join(f"{mark} {value:,.0f}" for mark, value in load.items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
