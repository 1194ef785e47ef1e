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
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from serving_load import QUERY, ask, bare, elsewhere, load, make_model, metric, plain, resident, server

PARTS = ("throughput", "lone", "load", "stop")


def throughput(folder: Path, seconds: float, infinity: str | None) -> dict:
    """pairs/s at 32 connections of 10 documents: each server against the plain loop just before it, in turns."""
    import torch

    from koir.kernels.bfloat16 import has_bfloat16

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
