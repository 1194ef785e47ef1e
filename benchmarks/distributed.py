"""Two processes against one on the same global batch: exchanges a step, bytes they move, and efficiency.

    .venv/bin/python benchmarks/distributed.py [--batch 128] [--steps 4] [--processes 2] [--json FILE]

v1.1 from the bundled base on the demo's rows (gloo on a CPU, nccl on GPUs), P processes of one thread each against one
of one thread and, on a CPU, one of P threads. Exchanges are counted by wrapping torch.distributed; bytes are what each
process hands over. Efficiency is the speed of P threads over P times the speed of one; each chunk budget is run, since
an exchange must not depend on how many chunks there are.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from koir import arguments  # noqa: E402
from koir.encoder import load_encoder  # noqa: E402
from koir.errors import end_one_of_several  # noqa: E402
from koir.gather import leave_processes, rank  # noqa: E402
from koir.manifest import origin  # noqa: E402
from koir.triplets import load_triplets  # noqa: E402

EXCHANGES = (
    "all_reduce", "all_gather", "all_gather_single", "all_gather_into_tensor", "all_gather_object", "reduce",
    "reduce_scatter", "reduce_scatter_single", "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "broadcast",
    "barrier", "gather", "scatter", "send", "recv",
)  # fmt: skip


class Count(TrainerCallback):
    """Counts exchanges by name, and their bytes, and times steps after the first."""

    def __init__(self):
        self.calls, self.bytes, self.steps, self.seconds, self.nested = {}, 0, 0, 0.0, False
        for name in EXCHANGES:
            if hasattr(dist, name):
                setattr(dist, name, functools.partial(self.counted, name, getattr(dist, name)))

    def counted(self, name, call, *tensors, **settings):
        """Call through; one exchange may be built of others, which do not count again."""
        if self.nested:
            return call(*tensors, **settings)
        self.calls[name] = self.calls.get(name, 0) + 1
        given = [tensor for tensor in (*tensors, *settings.values()) if isinstance(tensor, torch.Tensor)]
        self.bytes += given[-1].numel() * given[-1].element_size() if given else 0
        self.nested = True
        try:
            return call(*tensors, **settings)
        finally:
            self.nested = False

    def on_step_begin(self, args, state, control, **_):
        """The first step warms up."""
        if state.global_step == 1:
            self.calls, self.bytes, self.started = {}, 0, time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        """What the steps so far took."""
        if state.global_step > 1:
            self.steps, self.seconds = state.global_step - 1, time.perf_counter() - self.started
            self.found = dict(self.calls), self.bytes  # what follows belongs to the Trainer's own bookkeeping


def work(settings: dict) -> dict:
    """Train some steps in this process; what they exchanged and how long they took."""
    spec = importlib.util.spec_from_file_location("v11_train", ROOT / "v1.1" / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    args = arguments.TrainingArguments(
        output_dir=settings["folder"],
        per_device_train_batch_size=settings["batch"] // int(os.environ.get("WORLD_SIZE", 1)),
        max_steps=settings["steps"] + 1,
        save_strategy="no",
        logging_strategy="no",  # a line of metrics.jsonl is one more small exchange
        use_cpu=not torch.cuda.is_available(),
        bf16=settings["bf16"],
        disable_tqdm=True,
        seed=1,
    )
    encoder = load_encoder("demo", max_seq_length=settings["max_seq_length"])
    groups = {
        "loss": arguments.LossArguments(temperature=0.05),
        "chunks": arguments.ChunkArguments(chunk_tokens=settings["chunk_tokens"]),
        "data": arguments.DataArguments(max_hard_negatives=1),
        "dev_tasks": [],
        "step": arguments.CacheArguments(cache_keep_tokens=settings["cache_keep_tokens"]),
    }
    trainer = train.GradCacheTrainer(encoder, args, load_triplets(settings["train_data"]), groups)
    count = Count()
    trainer.add_callback(count)
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    calls, moved = count.found
    return {
        "exchanges": {name: number / count.steps for name, number in calls.items()},
        "exchanges_a_step": sum(calls.values()) / count.steps,
        "megabytes_a_step": moved / count.steps / 1e6,
        "seconds_a_step": count.seconds / count.steps,
    }


def launch(processes: int, threads: int, settings: dict) -> dict:
    """Run `work` in so many processes of so many threads; what the first one found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["--work", json.dumps(settings | {"folder": folder, "out": str(out)})]
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        if not torch.cuda.is_available():
            environment["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns that it had to find out
        done = subprocess.run([*start, __file__, *words], env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"error: {processes} processes ended with status {done.returncode}:\n{done.stderr[-2000:]}")
        return json.loads(out.read_text())


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="rows of the global batch")
    parser.add_argument("--steps", type=int, default=4, help="steps measured, after one that warms up")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--chunk_tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--cache_keep_tokens", type=int, default=0, help="of each process, as in training")
    parser.add_argument("--train_data", nargs="+", default=["demo"], help="rows; at most one hard negative of each")
    parser.add_argument("--max_seq_length", type=int, default=128, help="tokens")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        settings = json.loads(arguments.work)
        found = work(settings)
        if rank() == 0:
            Path(settings["out"]).write_text(json.dumps(found))
        leave_processes()
        end_one_of_several()
        return
    rows, many = [], arguments.processes
    print(f"{'processes':>9} {'threads':>8} {'chunk tokens':>12} {'exchanges a step':>17} ", end="")
    print(f"{'MB a step':>10} {'s a step':>9} {'efficiency':>11}")
    names = ("batch", "steps", "cache_keep_tokens", "train_data", "max_seq_length", "bf16")
    for tokens in arguments.chunk_tokens:
        settings = {name: getattr(arguments, name) for name in names} | {"chunk_tokens": tokens}
        for processes, threads in ((1, 1), (1, many), (many, 1))[:: 2 if torch.cuda.is_available() else 1]:
            row = settings | {"processes": processes, "threads": threads} | launch(processes, threads, settings)
            rows.append(row)
            share = ""
            if processes * threads == 1:
                alone = row["seconds_a_step"]
            else:
                row["efficiency"] = alone / (many * row["seconds_a_step"])
                share = f"{row['efficiency']:.0%}"
            print(f"{processes:>9} {threads:>8} {tokens:>12,} {row['exchanges_a_step']:>17.1f} ", end="")
            print(f"{row['megabytes_a_step']:>10.2f} {row['seconds_a_step']:>9.2f} {share:>11}", flush=True)
    print("a step's exchanges:", ", ".join(f"{name} {calls:g}" for name, calls in rows[-1]["exchanges"].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows} | origin(), indent=2) + "\n")


if __name__ == "__main__":
    main()
