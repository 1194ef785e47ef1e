"""Commands as users run them, each in a process of its own, forked from one that has done the slow imports already.

What python SCRIPT WORDS... prints, writes and ends with is the same; it begins ten seconds of a slow core sooner.
"""

import functools
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import runpy
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from served import free_port

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
IMPORTS = ["koir.runs.encoders", "koir.runs.rerankers", "koir.evaluation.joint", "koir.mining"]


def loaded(script):
    """A command's module, anew and in this process. script: its path from the root, which no import reaches."""
    spec = importlib.util.spec_from_file_location(re.sub(r"\W", "_", script), ROOT / script)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _warm():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    return context


def _become(script, words, environment, cwd, out, err):
    for stream, number in ((out, 1), (err, 2)):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    os.chdir(cwd)
    sys.argv, sys.path[:0] = [script, *words], [str(Path(script).parent), str(ROOT)]
    runpy.run_path(script, run_name="__main__")


def start(script, *words, env=None, cwd=ROOT, out=os.devnull, err=os.devnull):
    """A command that runs: a process with `pid`, `kill` and `join`. env: its whole environment; default: ours."""
    words, files = list(map(str, words)), [str(out), str(err)]
    process = _warm().Process(target=_become, args=(str(script), words, dict(env or os.environ), str(cwd), *files))
    process.start()
    return process


def finished(processes, files, seconds):
    """The first return code that is not 0, stdout and stderr; once one has failed or the time is up, all are killed."""
    waiting, codes, deadline = {process.sentinel: process for process in processes}, [], time.monotonic() + seconds
    while waiting and not any(codes):
        ended = multiprocessing.connection.wait(waiting, max(0, deadline - time.monotonic()))
        codes += [waiting.pop(sentinel).exitcode for sentinel in ended] or ["too slow"]
    for process in processes:
        process.kill()
        process.join()
    texts = [Path(file).read_text(encoding="utf-8") for file in files]
    return SimpleNamespace(returncode=next(filter(None, codes), 0), stdout=texts[0], stderr=texts[1])


def run(script, *words, env=None, cwd=ROOT, seconds=300):
    """A command from start to end: returncode, stdout, stderr."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        return finished([start(script, *words, env=env, cwd=cwd, out=files[0], err=files[1])], files, seconds)


def run_together(script, processes, *words, seconds=400, threads=1):
    """A command in several processes, of so many threads each, that find each other as torchrun's do."""
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": str(threads)}
    there |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    ours = [os.environ | there | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        return finished([start(script, *words, env=env, out=files[0], err=files[1]) for env in ours], files, seconds)


def saved_by(script, processes, out, settings, threads=1):
    """Run tests/<script> OUT SETTINGS in several gloo processes; what rank 0 saved."""
    done = run_together(HERE / script, processes, out, json.dumps(settings), threads=threads)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out, weights_only=True)
