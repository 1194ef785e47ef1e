"""A server of a random reranker, requests of mixed lengths to it, and what answers them without a server."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
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
    model.keep_inference_alone(False)
    chunks, _, _ = model.chunks([(QUERY, "1년간 80퍼센트 이상 출근한 근로자에게 15일의 휴가를 준다.")], 512)
    found = []
    with torch.inference_mode():
        for _ in range(220):
            started = time.perf_counter()
            model.infer(chunks[0])
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
