"""The server under load, against CrossEncoder.predict called for one request after another.

    .venv/bin/python benchmarks/serve.py [--only throughput lone load stop] [--seconds 15] [--load_seconds 60]
                                         [--layers 6] [--hidden 384] [--infinity PYTHON] [--json FILE]

The model is a cross-encoder with random weights (speed does not depend on them) and the demo's tokenizer; documents are
made of the demo's sentences, 8 to 400 tokens, most of them short. Server, load generator and plain loop share the same
cores; the plain loop and the server are measured in turns, so that what else the machine does meets both. --infinity:
the Python of an environment with infinity-emb[torch,server], whose server then takes a turn too.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
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
PARTS = ("throughput", "lone", "load", "stop")
QUERY = "연차 휴가는 며칠인가요?"


def make_model(folder: Path, layers: int, hidden: int) -> None:
    """A cross-encoder folder with random weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, XLMRobertaConfig

    from koir.manifest import DEMO
    from koir.reranker import Reranker

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden, max_position_embeddings=514, num_labels=1, pad_token_id=1,
    )  # fmt: skip
    Reranker(AutoModelForSequenceClassification.from_config(config), tokenizer, 512).save(folder)


def requests(seed: int, documents: int | None) -> list[dict]:
    """Bodies of mixed lengths: `documents` each, or 1 to 20."""
    draw = random.Random(seed)
    with (ROOT / "koir/demo/beir/corpus.jsonl").open(encoding="utf-8") as lines:
        sentences = [
            part.strip() + "." for line in lines for part in json.loads(line)["text"].split(".") if part.strip()
        ]
    made = []
    for number in range(400):
        texts = []
        for _ in range(documents or draw.randint(1, 20)):
            count = min(max(round(draw.lognormvariate(0.9, 0.8)), 1), 14)  # sentences, some 30 tokens each
            texts.append(f"{draw.randrange(10**6)} " + " ".join(draw.choices(sentences, k=count)))
        made.append({"query": f"{QUERY} {number}", "documents": texts})
    return made


def plain(folder: str, seconds: float, seed: int, out) -> None:
    """pairs/s of CrossEncoder.predict, one request of 10 documents after another; in a process of its own."""
    from sentence_transformers import CrossEncoder

    model, bodies = CrossEncoder(folder, device="cpu"), requests(seed, 10)
    model.predict([(QUERY, text) for text in bodies[0]["documents"]])
    pairs, started = 0, time.perf_counter()
    for body in bodies * 1000:
        model.predict([(body["query"], text) for text in body["documents"]])
        pairs += len(body["documents"])
        if time.perf_counter() - started > seconds:
            break
    out.put(pairs / (time.perf_counter() - started))


def bare(folder: str, out) -> None:
    """Milliseconds of a bare forward of one (query, document) pair, the server's own forward, each of 200."""
    import torch

    from koir.reranker import load_reranker

    model = load_reranker(folder).eval()
    model.only_score(False)
    chunks, _, _ = model.chunks([(QUERY, "1년간 80퍼센트 이상 출근한 근로자에게 15일의 휴가를 준다.")], 512)
    found = []
    with torch.inference_mode():
        for _ in range(220):
            started = time.perf_counter()
            model.scored(chunks[0])
            found.append(1000 * (time.perf_counter() - started))
    out.put(found[20:])


def elsewhere(function, *arguments):
    """Call it in a fresh process, and give what it puts."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=function, args=(*arguments, out))
    process.start()
    found = out.get(timeout=600)
    process.join()
    return found


@contextlib.contextmanager
def server(folder: Path, dtype: str, infinity: str | None = None):
    """scripts/serve.py, or infinity-emb in float32, on a free port: (process, port)."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    words = [sys.executable, "scripts/serve.py", "--reranker", str(folder), "--first_stage", "dense:demo"]
    words += ["--port", str(port), "--dtype", dtype]
    if infinity:
        words = [str(Path(infinity).with_name("infinity_emb")), "v2", "--model-id", str(folder), "--engine", "torch"]
        words += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--no-bettertransformer", "--no-compile", "--url-prefix", "/v1"]
    ready = f"http://127.0.0.1:{port}/{'v1/models' if infinity else 'ready'}"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=ROOT, stderr=log, stdout=log, env=environment)
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=5):
                break
            if process.poll() is not None:
                sys.exit((folder.parent / "log").read_text())
            time.sleep(0.2)
        yield process, port
    finally:
        process.terminate()
        process.wait(60)


async def ask(reader, writer, body: bytes) -> tuple[int, bytes, bool]:
    """One request on an open connection: status, content, whether the connection ends."""
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(re.search(r"content-length: (\d+)", answer)[1])
    content = await reader.readexactly(length)
    return int(answer.split(" ", 2)[1]), content, "connection: close" in answer


async def connection(port: int, bodies: list[bytes], until: float, found: dict) -> None:
    """A client that asks again as soon as it is answered. found: seconds, pairs, failed, refused, lost."""
    reader = writer = None
    for body in bodies * 1000:
        if time.perf_counter() > until:
            break
        if writer is None:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                found["refused"] += 1
                return
            fresh = True
        started = time.perf_counter()
        try:
            status, content, ends = await ask(reader, writer, body)
        except (OSError, asyncio.IncompleteReadError):
            found["refused" if fresh else "lost"] += 1
            return
        found["seconds"].append(time.perf_counter() - started)
        found["pairs"] += body.count(b'", "') if status == 200 else 0  # one after the query, the rest between
        found["failed"] += status != 200
        fresh = False
        if ends:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()


def load(port: int, connections: int, seconds: float, documents: int | None, seed: int, out=None) -> dict:
    """So many connections for so many seconds."""
    bodies = [json.dumps(body, ensure_ascii=False).encode() for body in requests(seed, documents)]
    found = {"seconds": [], "pairs": 0, "failed": 0, "refused": 0, "lost": 0}

    async def all_of_them():
        until = time.perf_counter() + seconds
        clients = [connection(port, bodies[n:] + bodies[:n], until, found) for n in range(0, 6 * connections, 6)]
        await asyncio.gather(*clients)

    started = time.perf_counter()
    asyncio.run(all_of_them())
    found["wall"] = time.perf_counter() - started
    if out is not None:
        out.put(found)
    return found


def metric(port: int, name: str) -> float:
    """A number from /metrics, of the reranker where models are told apart."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        return float(re.search(rf'^{name}(?:\{{kind="reranker".*\}})? (\S+)$', page.read().decode(), re.M)[1])


def resident(process: int) -> float:
    """MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


def throughput(folder: Path, seconds: float, infinity: str | None) -> dict:
    """pairs/s at 32 connections of 10 documents: each server against the plain loop just before it, in turns."""
    import torch

    from koir.bfloat16 import has_bfloat16

    kinds = ["float32", *["bfloat16"] * has_bfloat16(torch.device("cpu")), *["infinity"] * bool(infinity)]
    found: dict[str, list[float]] = {"plain": []} | {kind: [] for kind in kinds}
    ratio: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(2):
        for kind in kinds:
            found["plain"].append(elsewhere(plain, str(folder), seconds, turn))
            with server(folder, kind, infinity if kind == "infinity" else None) as (_, port):
                load(port, 4, 2, 10, 99)
                done = elsewhere(load, port, 32, seconds, 10, turn)
            found[kind].append(done["pairs"] / done["wall"])
            ratio[kind].append(found[kind][-1] / found["plain"][-1])
            said = f"plain {found['plain'][-1]:.0f}, {kind} {found[kind][-1]:.0f} pairs/s, {ratio[kind][-1]:.2f} times"
            print(said, file=sys.stderr, flush=True)
    return {"pairs_per_second": found, "ratio": ratio}


def lone(folder: Path) -> dict:
    """Milliseconds of one document, one call at a time, against the bare forward: in a loop of its own, and as it is
    inside the server, whose threads slept and whose caches others used since the last call."""
    body = {"query": QUERY, "documents": ["1년간 80퍼센트 이상 출근한 근로자에게 15일의 휴가를 준다."]}

    async def calls(port: int, count: int) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = []
        for _ in range(count):
            started = time.perf_counter()
            await ask(reader, writer, json.dumps(body).encode())
            found.append(1000 * (time.perf_counter() - started))
        writer.close()
        return found

    forward = elsewhere(bare, str(folder))
    with server(folder, "float32") as (_, port):
        asyncio.run(calls(port, 20))
        before = metric(port, "koir_device_seconds_total")
        alone = asyncio.run(calls(port, 200))
        inside = 1000 * (metric(port, "koir_device_seconds_total") - before) / len(alone)
    forward += elsewhere(bare, str(folder))
    call, under = statistics.median(alone), statistics.median(forward)
    found = {"call_ms": call, "forward_ms": under, "difference_ms": call - under}
    mean = statistics.mean(alone)
    return found | {"mean_call_ms": mean, "mean_forward_inside_ms": inside, "mean_difference_ms": mean - inside}


def under_load(folder: Path, seconds: float) -> dict:
    """64 connections of mixed lengths; memory second by second; then clients that are killed."""
    with server(folder, "auto") as (process, port):
        context = multiprocessing.get_context("spawn")
        out, memory = context.Queue(), []
        generator = context.Process(target=load, args=(port, 64, seconds, None, 5, out))
        generator.start()
        while out.empty() and generator.is_alive():
            memory.append(resident(process.pid))
            time.sleep(1)
        found = out.get()
        generator.join()
        killed = kill_clients(port, process.pid)
    ranked = sorted(found["seconds"])
    cut = {f"p{p}_ms": 1000 * ranked[min(len(ranked) * p // 100, len(ranked) - 1)] for p in (50, 95, 99)}
    after = memory[12:] or memory  # its own start takes two seconds
    return {
        "requests": len(ranked), "failed": found["failed"] + found["lost"] + found["refused"], **cut,
        "pairs_per_second": found["pairs"] / found["wall"],
        "memory_mib": {"after_10_s": after[0], "highest_later": max(after), "last": after[-1]},
        "memory_each_10_s_mib": memory[2::10],
        "killed_clients": killed,
    }  # fmt: skip


def kill_clients(port: int, process: int) -> dict:
    """Load generators that are killed in the middle, three times; what they leave behind."""
    before = {"files": metric(port, "process_open_fds"), "mib": resident(process)}
    context = multiprocessing.get_context("spawn")
    for turn in range(3):
        generator = context.Process(target=load, args=(port, 32, 60, None, turn))
        generator.start()
        time.sleep(4)
        generator.kill()
        generator.join()
    time.sleep(3)
    left = {"texts": metric(port, "koir_queue_texts"), "waiting_tokens": metric(port, "koir_waiting_tokens")}
    left["files"] = metric(port, "process_open_fds") - before["files"]
    return left | {"mib_more": resident(process) - before["mib"]}


def stop(folder: Path) -> dict:
    """SIGTERM in the middle of 32 connections: answered, and accepted but lost."""
    with server(folder, "auto") as (process, port):
        context = multiprocessing.get_context("spawn")
        out = context.Queue()
        generator = context.Process(target=load, args=(port, 32, 120, 10, 3, out))
        generator.start()
        time.sleep(8)
        process.send_signal(signal.SIGTERM)
        started = time.perf_counter()
        code = process.wait(120)
        seconds = time.perf_counter() - started
        found = out.get()
        generator.join()
    return {
        "answered": len(found["seconds"]),
        "failed": found["failed"],
        "lost": found["lost"],
        "exit": code,
        "seconds": seconds,
    }


def main() -> None:
    """Print what was found, part by part, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=15, help="of each turn of throughput")
    parser.add_argument("--load_seconds", type=float, default=60)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--infinity", help="a Python that has infinity-emb[torch,server]; default: not compared")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.infinity is None:
        print("infinity-emb: not compared (--infinity PYTHON names an environment that has it)", file=sys.stderr)
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "reranker"
        make_model(folder, arguments.layers, arguments.hidden)
        runs = {
            "throughput": lambda: throughput(folder, arguments.seconds, arguments.infinity),
            "lone": lambda: lone(folder),
            "load": lambda: under_load(folder, arguments.load_seconds),
            "stop": lambda: stop(folder),
        }
        found = {"model": f"{arguments.layers} layers of {arguments.hidden}, random weights", "cores": os.cpu_count()}
        for part in arguments.only:
            found[part] = runs[part]()
            print(f"{part}: {json.dumps(found[part], indent=2)}", flush=True)
    if arguments.json:
        from koir.manifest import origin

        arguments.json.write_text(json.dumps(found | origin(), indent=2) + "\n")


if __name__ == "__main__":
    main()
