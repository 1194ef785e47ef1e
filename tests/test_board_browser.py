"""The page in a real browser: Debian's chromium, driven by playwright; skipped where there is none."""

import csv
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from made_results import write_results, write_run

ROOT = Path(__file__).resolve().parents[1]
BROWSER = os.environ.get("KOIR_BROWSER") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER, reason="no chromium here; apt-get install chromium, or KOIR_BROWSER=/path/to/one"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page that serves made-up results on a free port: its address, and what was written."""
    folder = tmp_path_factory.mktemp("served")
    contents = write_results(folder / "results")
    write_run(folder / "outputs/v1.1-demo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--server.headless=true", f"--server.port={port}", "--server.fileWatcherType=none"]
    words = [sys.executable, "-m", "streamlit", "run", str(ROOT / "leaderboard.py"), *flags, "--"]
    words += ["--results", str(folder / "results"), "--outputs", str(folder / "outputs")]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        _wait_for(f"http://127.0.0.1:{port}/_stcore/health", server)
        yield f"http://127.0.0.1:{port}/", contents
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(url, server, seconds=90):
    for _ in range(seconds * 2):
        assert server.poll() is None, "streamlit stopped"
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.5)
    raise AssertionError("streamlit did not start")


@pytest.fixture(scope="module")
def chromium():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra `test`")
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, request):
    size = getattr(request, "param", (1280, 900))
    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def settled(page):
    """Wait until the script has run and its table stands."""
    page.wait_for_selector(".koir-table td")
    page.wait_for_function("document.querySelector('[data-test-script-state=notRunning]') !== null")
    return page


def names(page):
    return page.locator(".koir-table").first.locator("tbody th").all_inner_texts()


def cells(page, row):
    return page.locator(".koir-table").first.locator("tbody tr").nth(row).locator("th, td").all_inner_texts()


def test_a_reader_filters_switches_the_metric_follows_a_pipeline_and_downloads(served, page, tmp_path):
    address, contents = served
    settled_page = settled(page.goto(address) and page)
    assert len(names(settled_page)) == len(contents)

    page.get_by_text("Search and filters").click()
    page.get_by_label("Search by name").fill("ko@")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.koir-table tbody tr').length === 2")
    assert "search=ko" in page.url

    page.locator("[data-testid=stRadio]", has_text="k").get_by_text("3", exact=True).click()
    page.wait_for_function("document.querySelector('.koir-table caption')?.textContent.includes('nDCG@3')")
    settled(page)
    assert "k=3" in page.url
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download CSV").click()
    waiting.value.save_as(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    assert sorted(row["name"] for row in rows) == ["dense-v1.1-demo+ko@10", "dense-v1.1-demo+ko@50"]
    for row in rows:
        for task, content in contents[row["name"]].items():
            assert float(row[task]) == content["scores"]["test"][0]["ndcg_at_3"]

    followed = names(page)[0]
    page.locator(".koir-table").first.get_by_role("link", name=followed).click()
    page.wait_for_function("document.querySelectorAll('.koir-table').length >= 3")
    settled(page)
    assert "view=pipeline" in page.url and "k=3" in page.url
    task, _, reranked = cells(page, 0)[:3]
    assert reranked == f"{contents[followed][task]['scores']['test'][0]['ndcg_at_3']:.4f}"
    url = page.url
    settled(page.goto(url) and page)
    assert cells(page, 0)[2] == reranked  # the link alone brings the same view back


@pytest.mark.parametrize("page", [(1280, 900), (390, 844)], indirect=True, ids=["1280", "390"])
def test_nothing_is_wider_than_the_window(served, page):
    wide = "[...document.querySelectorAll('[data-testid=stMain], html')].map(e => e.scrollWidth - e.clientWidth)"
    for query in (
        "",
        "?group=kor-v2&lang=ko",
        "?view=cost",
        "?view=pipeline",
        "?view=compare&lang=ko",
        "?view=training",
    ):
        settled(page.goto(served[0] + query) and page)
        assert max(page.evaluate(wide)) <= 0, query
        assert page.locator("[data-testid=stException]").count() == 0, query


def test_the_table_is_one_that_a_screen_reader_reads(served, page):
    settled(page.goto(served[0] + "?lang=ko") and page)
    region = page.get_by_role("region", name=re.compile("자체 결과"))
    assert region.get_by_role("columnheader", name="파이프라인").count() == 1
    assert region.get_by_role("rowheader").count() == len(served[1])
