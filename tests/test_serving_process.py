"""The command as a process: clients that hang up, SIGTERM under load, flags that cannot be."""

import http.client
import json
import re
import signal
import socket
import threading
import time
import urllib.request

import pytest
from commands import loaded
from served import serving

from koir.encoder import load_encoder
from koir.reranker import load_reranker

HEADERS = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    there = tmp_path_factory.mktemp("server")
    load_encoder("demo", num_hidden_layers=1).save(there / "encoder")
    load_reranker("demo").save(there / "reranker")
    flags = ["--first_stage", f"dense:{there / 'encoder'}", "--reranker", there / "reranker"]
    with serving(*flags, log=there / "log") as (process, url):
        yield process, url, there / "log"


def test_a_client_that_hangs_up_leaves_the_queue(server):
    _, url, _ = server
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"query": "연차", "documents": [f"{n}번째 문서는 길다. " * 40 for n in range(4000)]}).encode()
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        time.sleep(0.5)
    deadline = time.monotonic() + 30
    while (queue := metric(url, "koir_queue_texts")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert queue == 0 and metric(url, "koir_waiting_tokens") == 0
    assert metric(url, "koir_computed_texts_total") < 4000


def metric(url, name):
    with urllib.request.urlopen(url + "/metrics", timeout=10) as page:
        return float(re.search(rf'^{name}\{{kind="reranker".*\}} (\S+)$', page.read().decode(), re.M)[1])


def test_a_request_that_never_ends_holds_nobody_up(tmp_path):
    """Neither for ever, by a body that stops in its middle, nor at the end, when a signal says stop."""
    script = """import runpy, sys, koir.serving.app as app, koir.serving.door as door
app.GRACE, door.BODY_WAIT, sys.argv[0] = 1, int(sys.argv.pop(1)), "serve.py"
runpy.run_path("scripts/serve.py", run_name="__main__")"""
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    for wait in ("1", "60"):
        with serving("--first_stage", "dense:demo", log=tmp_path / "log", script=("-c", script, wait)) as (
            process,
            url,
        ):
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as client:
                client.sendall(head)
                if wait == "1":
                    assert client.recv(100).startswith(b"HTTP/1.1 408")
                else:
                    time.sleep(0.3)
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(20) is not None


def test_sigterm_under_load_loses_no_accepted_request(server):
    process, url, log = server
    answered, lost, stop = [], [], threading.Event()

    def client(number):
        documents = [f"{number}-{n} 한라산은 제주도에 있다. " * (1 + n % 7) for n in range(12)]
        body = json.dumps({"query": "산", "documents": documents}).encode()
        connection, used = None, 0
        while not stop.is_set():
            if connection is None:
                connection, used = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30), 0
                try:
                    connection.connect()
                except OSError:
                    return  # no longer listening
            try:
                connection.request("POST", "/v1/rerank", body, HEADERS)
                answer = connection.getresponse()
                content = json.loads(answer.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                if used:  # a fresh connection that the process never took in is not an accepted one
                    lost.append(repr(error))
                return
            answered.append((answer.status, len(content.get("results", []))))
            used += 1
            if answer.getheader("Connection") == "close":
                connection = None

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(answered) < 24 and time.monotonic() < deadline:
        time.sleep(0.01)
    before = len(answered)
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert code == 0 and lost == [] and before >= 24
    assert set(answered) == {(200, 12)} and len(answered) >= before
    lines = log.read_text(encoding="utf-8")
    assert "Traceback" not in lines and "한라산" not in lines


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prot", "1"], "did you mean port"),
        (["--dtype", "fp8"], "--dtype"),
        (["--port", "70000"], "--port"),
        (["--max_body_mb", "inf"], "--max_body_mb: found inf"),
        (["--score_map", "sigmiod"], "did you mean sigmoid"),
        (["--api_key_file", "/nowhere"], "--api_key_file /nowhere: found no such file"),
        (["--models", "/nowhere.yaml"], "--models /nowhere.yaml: found no such file"),
        (["--pipeline", "x.json", "--reranker", "none"], "--pipeline"),
        (["--first_stage", "dense:/nowhere", "--reranker", "none"], "no such folder"),
        (["--first_stage", "bm25", "--reranker", "none"], "--index_uri"),
    ],
)
def test_flags_that_cannot_be_are_said_in_one_line(flags, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if "--port" not in flags:
        flags = [*flags, "--port", "18931"]
    with pytest.raises(SystemExit) as stopped:
        loaded("scripts/serve.py").main(flags)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith("error: ") and said in error


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        loaded("scripts/serve.py").main(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and "--max_queue" in printed and "--cors_origins" in printed
