"""Peak memory against batch size, one hard negative a query: of the loss stage, and of a whole cached step.

    .venv/bin/python benchmarks/memory.py [--batches 1024 8192 65536] [--dimensions 1024] [--strips N] [--json FILE]
    .venv/bin/python benchmarks/memory.py --stage encoder [--batches 256 1024 4096] [--json FILE]

Each batch runs in a process of its own, so that its peak is its own. The loss stage draws embeddings at random; its
peak is counted beside the embeddings and their gradients, which any loss needs. Where all strips of rows would take
hours, --strips runs the first N of them: each strip allocates the same, so the peak is that of all. The encoder stage
takes as many rows as the largest batch has, in steps of B: the same texts for all, since holes in the heap come with
chunks of new shapes, whatever the batch. As a training does, it first measures the graph of the longest chunk. It runs
benchmarks/train_step.py's model (4 layers x 256, real lengths) with no graph kept, under the memory settings of
scripts/launch.sh where there are no others; its peak is that of the process. The CPU's peak is resident memory, the
GPU's is torch's.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import engines
import train_step
import workload

from koir import losses
from koir.budget import bytes_per_token
from koir.manifest import ROOT, origin, peak_memory_bytes
from koir.tokens import CPU_CHUNK

AS_LAUNCHED = ["bash", "-c", 'source "$0" && keep_memory && exec "$@"', str(ROOT / "scripts" / "launch.sh")]


def one(batch: int, dimensions: int, strips: int) -> dict:
    """Loss and gradients of one batch: bytes of the embeddings and gradients, and the peak beside them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns, size = 2 * batch, 4
    rows = min(batch, strips * losses.strip_rows(columns * size)) if strips else batch
    warm = torch.ones(512, 512, device=device)
    (warm @ warm).sum().item()  # what the libraries themselves take is not the loss's
    queries = torch.nn.functional.normalize(torch.randn(rows, dimensions, device=device), dim=1).requires_grad_()
    documents = torch.randn(columns, dimensions, device=device)
    documents /= documents.norm(dim=1, keepdim=True)
    documents.requires_grad_()
    hashes = torch.arange(columns, device=device)
    before, needed = peak_memory_bytes(), (rows + columns) * dimensions * size  # the gradients are still to come
    started = time.perf_counter()
    value = losses.info_nce(queries, documents, torch.arange(rows, device=device), 0.02, hashes[:rows, None], hashes)
    torch.autograd.grad(value, (queries, documents))
    seconds = time.perf_counter() - started
    facts = {"batch": batch, "rows_run": rows, "matrix_bytes": batch * columns * size, "seconds": seconds}
    return facts | {"beside_bytes": peak_memory_bytes() - before - needed}


def steps(batch: int, count: int) -> dict:
    """Gradient-cached steps over `count` rows, nothing kept: the peaks of the process and the bytes of embeddings."""
    defaults = train_step.parser().parse_args(["--batch", str(count)])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = workload.make_encoder(defaults, device).train()
    rows = workload.read_rows(defaults, encoder.tokenizer)
    bytes_per_token(encoder, device)
    first, started = None, time.perf_counter()
    for start in range(0, count, batch):
        encoder.zero_grad()
        engines.koir_step(engines.Bench(encoder, rows[start : start + batch], False, device), CPU_CHUNK, 0.0)
        first = first or peak_memory_bytes()
    embeddings = 3 * batch * encoder.dimensions * 4
    return {"batch": batch, "embeddings_bytes": embeddings, "first_step_peak_bytes": first,
            "peak_bytes": peak_memory_bytes(), "seconds": time.perf_counter() - started}  # fmt: skip


def encoder_table(found: list[dict]) -> None:
    """Print the encoder stage's rows, each beside the first."""
    heads = ("B", "embeddings", "peak, first step", "to the first", "peak, all rows", "to the first", "seconds")
    print("{:>8} {:>11} {:>17} {:>13} {:>15} {:>13} {:>8}".format(*heads))
    for row in found:
        line = f"{row['batch']:>8,} {row['embeddings_bytes'] / 2**20:>7,.0f} MiB"
        for key, width in (("first_step_peak_bytes", 13), ("peak_bytes", 11)):
            line += f" {row[key] / 2**20:>{width},.0f} MiB {row[key] / found[0][key] - 1:>+13.1%}"
        print(f"{line} {row['seconds']:>8.1f}")


def loss_table(found: list[dict]) -> None:
    """Print the loss stage's rows."""
    print(f"{'B':>8} {'rows run':>9} {'beside embeddings and gradients':>32} {'the B x 2B matrix':>18} {'seconds':>8}")
    for row in found:
        beside, matrix = (f"{row[key] / 2**20:,.0f} MiB" for key in ("beside_bytes", "matrix_bytes"))
        print(f"{row['batch']:>8,} {row['rows_run']:>9,} {beside:>32} {matrix:>18} {row['seconds']:>8.1f}")


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=["loss", "encoder"], default="loss")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1,024 to 65,536; encoder: 256 to 4,096")
    parser.add_argument("--dimensions", type=int, default=1024, help="of the loss stage's embeddings")
    parser.add_argument("--strips", type=int, default=0, help="strips of rows to run (default 0: all)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    loss_stage = arguments.stage == "loss"
    if arguments.one:
        of_one = (arguments.one, arguments.dimensions, arguments.strips)
        print(json.dumps(one(*of_one) if loss_stage else steps(arguments.one, arguments.rows)))
        return
    found, batches = [], arguments.batches or ([1024, 4096, 16384, 65536] if loss_stage else [256, 1024, 4096])
    for batch in batches:
        words = ["--one", batch, "--stage", arguments.stage, "--dimensions", arguments.dimensions]
        words += ["--strips", arguments.strips, "--rows", max(batches)]
        command = [*([] if loss_stage else AS_LAUNCHED), sys.executable, __file__, *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"error: batch {batch} ended with status {done.returncode}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    what = f"D = {arguments.dimensions}" if loss_stage else "4 layers x 256, nothing kept"
    print(f"torch {torch.__version__}, {platform.machine()}, {what}, float32")
    (loss_table if loss_stage else encoder_table)(found)
    if arguments.json:
        content = json.dumps({arguments.stage: found} | origin(), indent=2)
        arguments.json.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
