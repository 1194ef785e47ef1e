"""What a run costs: tokens, FLOPs, bytes and seconds, from the model's shape and the machine's speed.

    .venv/bin/python benchmarks/cost_model.py [--rows 723428] [--batch 4096] [--gpus 8] [--kept 0] [--json FILE]

The defaults are multilingual-e5-large on H200s. --flops is what a device reaches on the model's matrix products; with
--measure this machine's own matrix product is timed and used instead, so that the model can be held against
benchmarks/train_step.py. docs/scaling.md explains the terms.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utilisation import matmul_peak

LENGTHS = Path(__file__).parent / "lengths.json"


def costs(a: argparse.Namespace) -> dict[str, float]:
    """The terms of one step, in seconds, and of one pass over the rows, in hours."""
    lengths = [
        length for row in json.loads(LENGTHS.read_text(encoding="utf-8"))["lengths"] for length in row[: a.texts]
    ]
    rows = len(lengths) // a.texts
    tokens = a.batch * sum(lengths) / rows  # a global batch's
    squares = a.batch * sum(length**2 for length in lengths) / rows
    weights = a.layers * 12 * a.dimensions**2  # in matrix products; embeddings are only looked up
    forward = 2 * weights * tokens + 4 * a.layers * a.dimensions * squares  # products, and attention's two more
    units = 3 + (1 - a.kept)  # forward, backward (twice a forward), and the forward again of what is not kept
    columns = (a.texts - 1) * a.batch
    loss = 6 * a.batch * columns * a.dimensions  # scores, and two products for the gradients
    parameters = weights + a.vocabulary * a.dimensions
    embeddings = columns * a.dimensions * 4
    share = (a.gpus - 1) / a.gpus  # of what a ring moves
    found = {
        "tokens": tokens,
        "encoder": units * forward / (a.gpus * a.flops),
        "loss": loss / (a.gpus * a.loss_flops),
        "embeddings gathered and returned": 2 * share * embeddings / a.bandwidth,
        "gradients averaged": 2 * share * parameters * 4 / a.bandwidth,
    }
    step = sum(found.values()) - tokens
    return found | {"step": step, "hours a pass": a.rows / a.batch * step / 3600}


def parser() -> argparse.ArgumentParser:
    """The flags and their defaults."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rows", type=float, default=723_428)
    flags.add_argument("--texts", type=int, default=3, help="of a row: query, document, hard negative (2: none)")
    flags.add_argument("--batch", type=int, default=4096, help="rows of the global batch")
    flags.add_argument("--gpus", type=int, default=1)
    flags.add_argument("--layers", type=int, default=24)
    flags.add_argument("--dimensions", type=int, default=1024)
    flags.add_argument("--vocabulary", type=int, default=250_002)
    flags.add_argument("--kept", type=float, default=0.0, help="share of the graphs that is kept")
    flags.add_argument("--flops", type=float, default=377e12, help="a second and device; default: measured on an H200")
    flags.add_argument("--loss_flops", type=float, default=50e12, help="float32, a second and device")
    flags.add_argument("--bandwidth", type=float, default=300e9, help="bytes a second between devices")
    flags.add_argument("--measure", action="store_true", help="take --flops and --loss_flops from this machine")
    flags.add_argument("--json", type=Path)
    return flags


def main() -> None:
    """Print the terms, and write them with --json."""
    arguments = parser().parse_args()
    if arguments.measure:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        arguments.loss_flops = matmul_peak(device, torch.float32)
        arguments.flops = matmul_peak(device, torch.bfloat16) if device.type == "cuda" else arguments.loss_flops
        print(f"this machine's matrix product: {arguments.flops / 1e9:,.0f} GFLOP/s")
    found = costs(arguments)
    for name, value in found.items():
        unit = "" if name == "tokens" else " h" if name.startswith("hours") else " s"
        print(f"{name:<34} {value:>14,.0f}" if name == "tokens" else f"{name:<34} {value:>14.4f}{unit}")
    if arguments.json:
        arguments.json.write_text(json.dumps(vars(arguments) | found, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
