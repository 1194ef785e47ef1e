"""Peak memory of the loss stage against batch size: embeddings drawn at random, one hard negative a query.

    .venv/bin/python benchmarks/memory.py [--batches 1024 8192 65536] [--dimensions 1024] [--strips N] [--json FILE]

Each batch runs in a process of its own, so that its peak is its own. The peak is counted beside the embeddings and
their gradients, which any loss needs. Where all strips of rows would take hours, --strips runs the first N of them:
each strip allocates the same, so the peak is that of all. The CPU's peak is resident memory, the GPU's is torch's.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir import losses  # noqa: E402


def resident() -> int:
    """Peak bytes held so far: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(batch: int, dimensions: int, strips: int) -> dict:
    """Loss and gradients of one batch: bytes of the embeddings and gradients, and the peak beside them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns, size = 2 * batch, 4
    rows = min(batch, strips * max(1, losses.TILE_BYTES // (columns * size))) if strips else batch
    warm = torch.ones(512, 512, device=device)
    (warm @ warm).sum().item()  # what the libraries themselves take is not the loss's
    queries = torch.nn.functional.normalize(torch.randn(rows, dimensions, device=device), dim=1).requires_grad_()
    documents = torch.randn(columns, dimensions, device=device)
    documents /= documents.norm(dim=1, keepdim=True)
    documents.requires_grad_()
    hashes = torch.arange(columns, device=device)
    before, needed = resident(), (rows + columns) * dimensions * size  # the gradients are still to come
    started = time.perf_counter()
    value = losses.info_nce(queries, documents, torch.arange(rows, device=device), 0.02, hashes[:rows, None], hashes)
    torch.autograd.grad(value, (queries, documents))
    seconds = time.perf_counter() - started
    facts = {"batch": batch, "rows_run": rows, "matrix_bytes": batch * columns * size, "seconds": seconds}
    return facts | {"beside_bytes": resident() - before - needed}


def main() -> None:
    """Print the table, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--strips", type=int, default=0, help="strips of rows to run (default 0: all)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.dimensions, arguments.strips)))
        return
    found = []
    print(f"torch {torch.__version__}, {platform.machine()}, D = {arguments.dimensions}, float32")
    print(f"{'B':>8} {'rows run':>9} {'beside embeddings and gradients':>32} {'the B x 2B matrix':>18} {'seconds':>8}")
    for batch in arguments.batches:
        words = ["--one", batch, "--dimensions", arguments.dimensions, "--strips", arguments.strips]
        done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        found.append(row)
        beside, matrix = (f"{row[key] / 2**20:,.0f} MiB" for key in ("beside_bytes", "matrix_bytes"))
        print(f"{batch:>8,} {row['rows_run']:>9,} {beside:>32} {matrix:>18} {row['seconds']:>8.1f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "loss": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
