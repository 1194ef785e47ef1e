"""One optimisation step: koir's gradient cache against sentence-transformers, GradCache and the uncached ideal.

    .venv/bin/python benchmarks/train_step.py [--train_data F] [--batch 256] [--json FILE]

Every engine gets the same model, rows, dtype, dropout and threads, in one process, warm. sentence-transformers is swept
over its mini-batch sizes (rows and tokens), the ideal over chunk sizes, both on the first --sweep_batch rows, each
setting warm; then all run in turn on all rows, --rounds times, and each engine's fastest step counts. On a CPU each
takes a step before the one that is timed, since memory that the engine before it gave back has to be asked for again.
The ideal holds the whole batch's graph over texts sorted by length: no work twice, next to no padding; it runs chunk
after chunk, by all cores, where ours runs two at a time. Without --train_data, token ids are drawn at random with
the lengths in benchmarks/lengths.json. Losses and gradient norms are printed with dropout off and on the sweep's rows,
where all engines must agree.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engines import (
    DEFAULT_RIVAL,
    Bench,
    gradcache_step,
    ideal_step,
    koir_step,
    rivals,
)
from utilisation import matmul_peak, step_operations
from workload import make_encoder, read_rows

from koir.budget import bytes_per_token, chunk_budget, keep_budget, memory_for_training
from koir.errors import exit_on_user_error
from koir.flags import require
from koir.kernels.bfloat16 import has_bfloat16
from koir.kernels.compiled import compile_layers
from koir.lanes import pays
from koir.manifest import origin

ENGINES = ["ideal", "keep_auto", "keep_half", "keep_none"]
ENGINES += ["sentence_transformers_default", "sentence_transformers_best", "gradcache"]
CHUNK_SWEEP = {"cpu": (512, 1024, 2048, 4096), "cuda": (8192, 16384, 32768, 65536)}


def timed(bench: Bench, step: Callable[[], float]) -> float:
    """Seconds of one step, gradients cleared before it; infinite where a GPU's memory does not suffice."""
    for module in (bench.encoder, getattr(step, "model", bench.encoder)):
        module.train()
        module.zero_grad(set_to_none=True)
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    try:
        step()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return float("inf")
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def agreement(bench: Bench, step: Callable[[], float]) -> tuple[float, float]:
    """Loss and gradient norm with dropout off."""
    model = getattr(step, "model", bench.encoder)
    model.eval()
    model.zero_grad(set_to_none=True)
    loss = step()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return loss, torch.stack(norms).norm().item()


def best(bench: Bench, steps: dict[str, Callable[[], float]]) -> tuple[str, dict[str, float]]:
    """The fastest of several settings, each timed once after a warm step of its own, and all their seconds."""
    seconds = {}
    for name, step in steps.items():
        timed(bench, step)
        seconds[name] = timed(bench, step)
        print(f"  {name!s:<32} {seconds[name]:8.2f} s", flush=True)
    return min(seconds, key=seconds.get, default=""), seconds


def engines_of(bench: Bench, arguments: argparse.Namespace, chosen: int, rival: str) -> dict[str, Callable[[], float]]:
    """Every engine as a step over a bench's rows."""
    engines = {"ideal": functools.partial(ideal_step, bench, chosen)}
    for name, keep in (("keep_auto", arguments.keep_auto), ("keep_half", 0.5), ("keep_none", 0.0)):
        engines[name] = functools.partial(koir_step, bench, arguments.chunk_tokens, keep)
    if rival:
        steps = rivals(bench)
        engines["sentence_transformers_default"] = steps[DEFAULT_RIVAL]
        engines["sentence_transformers_best"] = steps[rival]
    if not arguments.ours_only and (original := gradcache_step(bench, 8)):
        engines["gradcache"] = original
    return engines


def measure(bench: Bench, arguments: argparse.Namespace) -> dict:
    """Sweeps, then all engines in turn; prints as it goes and returns seconds, settings and ratios."""
    part = dataclasses.replace(bench, rows=bench.rows[: arguments.sweep_batch])
    print(f"sentence-transformers, swept on {len(part.rows)} rows:")
    theirs = {} if arguments.ours_only else rivals(part)
    if arguments.rival is not None and arguments.rival not in theirs:
        sys.exit(f"error: --rival {arguments.rival}: expected one of {', '.join(theirs) or 'none with --ours_only'}")
    rival, rival_sweep = best(part, theirs if arguments.rival is None else {arguments.rival: theirs[arguments.rival]})
    print(f"uncached ideal, swept over chunk tokens on {len(part.rows)} rows:")
    ideals = {n: functools.partial(ideal_step, part, n) for n in CHUNK_SWEEP[bench.device.type]}
    chosen, ideal_sweep = best(part, ideals if "ideal" in (arguments.engines or ["ideal"]) else {})
    sweeps = {"sentence_transformers": rival_sweep, "ideal": ideal_sweep}
    if bench.device.type == "cuda":
        print(f"keep_none, over chunk tokens on {len(part.rows)} rows; automatic: {arguments.chunk_tokens}")
        ours = {n: functools.partial(koir_step, part, n, 0.0) for n in CHUNK_SWEEP["cuda"]}
        sweeps["keep_none"] = best(part, ours)[1]
    engines = engines_of(bench, arguments, chosen, rival)
    engines = {name: step for name, step in engines.items() if name in (arguments.engines or engines)}
    small = engines_of(part, arguments, chosen, rival)
    small = {name: small[name] for name in engines}
    for step in small.values():
        timed(part, step)
    seconds, memory = {name: [] for name in engines}, {}
    for number in range(arguments.rounds):
        for name, step in engines.items():
            if bench.device.type == "cpu":
                timed(bench, step)
            seconds[name].append(timed(bench, step))
            print(f"round {number + 1}: {name:<32} {seconds[name][-1]:8.2f} s", flush=True)
            if bench.device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
    fastest = {name: min(values) for name, values in seconds.items()}
    gpu = bench.device.type == "cuda"
    head = f"{'':<32} {'seconds':>9} {'to ideal':>9}" + f" {'peak GiB':>9}" * gpu
    print(f"\n{head}   loss and gradient norm, {len(part.rows)} rows, no dropout")
    agreed = {}
    for name in engines:
        agreed[name] = agreement(part, small[name])
        loss, norm = agreed[name]
        share = fastest[name] / fastest.get("ideal", float("nan"))
        line = f"{name:<32} {fastest[name]:>9.2f} {share:>9.2f}" + (f" {memory[name]:>9.1f}" if gpu else "")
        print(f"{line}   {loss:.6f}  {norm:.6f}")
    fastest = {name: value for name, value in fastest.items() if value < float("inf")}
    ratios = ratios_of(fastest)
    print("\n" + json.dumps(ratios, indent=2))
    facts = {"ratios": ratios, "seconds": fastest, "loss_and_gradient_norm": agreed}
    facts["all_seconds"] = {name: seconds[name] for name in fastest}
    facts["out_of_memory"] = sorted(set(engines) - set(fastest))
    again = {"ideal": 0.0, "keep_auto": 1 - arguments.keep_auto, "keep_half": 0.5}  # passes; of all others: 1
    facts |= {"use": used(bench, fastest, again), "peak_memory_gib": memory}
    return facts | {"sweeps": sweeps, "best_rival": rival}


def ratios_of(seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of each keeping that was timed: its seconds over the ideal's, and the rivals' over its."""
    ratios: dict[str, dict[str, float]] = {}
    for name in [name for name in seconds if name.startswith("keep_")]:
        ratios[name] = {}
        if "ideal" in seconds:
            ratios[name]["over_uncached_ideal"] = seconds[name] / seconds["ideal"]
        for rival in ("sentence_transformers_default", "sentence_transformers_best"):
            if rival in seconds:
                ratios[name][f"vs_{rival}"] = seconds[rival] / seconds[name]
    return ratios


def used(bench: Bench, fastest: dict[str, float], again: dict[str, float]) -> dict:
    """Tokens a second and the share of the measured matrix-product peak of each engine.

    again: the share of its forward passes that an engine does twice, which counts as work.
    """
    lengths = [len(ids) for row in bench.rows for ids in row]
    peak = matmul_peak(bench.device, torch.bfloat16 if bench.half else torch.float32)
    print(f"\nmatrix products: {peak / 1e12:.3f} Tflop/s at best\n{'':<32} {'tokens/s':>12} {'of the peak':>12}")
    found = {"matmul_flops": peak}
    for name, seconds in fastest.items():
        operations = step_operations(bench.encoder.transformer, lengths, again.get(name, 1.0))
        found[name] = {"tokens_per_second": sum(lengths) / seconds, "of_peak": operations / seconds / peak}
        print(f"{name:<32} {found[name]['tokens_per_second']:>12,.0f} {found[name]['of_peak']:>12.0%}")
    return found


def settle(bench: Bench, arguments: argparse.Namespace, tokens: int) -> None:
    """--chunk_tokens where it is not given, and the share of the tokens whose graphs training would keep by itself."""
    free = memory_for_training(sum(p.numel() for p in bench.encoder.parameters()), bench.device, 1, pays(bench.device))
    with bench.autocast():
        token_bytes = bytes_per_token(bench.encoder, bench.device)
    arguments.chunk_tokens = arguments.chunk_tokens or chunk_budget(free, token_bytes, bench.device)
    arguments.keep_auto = min(keep_budget(free, token_bytes, bench.device, arguments.chunk_tokens) / tokens, 1.0)
    room = f"{free / 2**30:.1f} GiB free"
    print(f"{token_bytes:,.0f} bytes a token's graph, {room}: chunks of {arguments.chunk_tokens} tokens")


def parser() -> argparse.ArgumentParser:
    """The flags and their defaults."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--train_data", help="rows with hard negatives; default: random ids of real lengths")
    flags.add_argument("--batch", type=int, default=256, help="rows, each query, document and hard negative")
    flags.add_argument("--layers", type=int, default=4)
    flags.add_argument("--dimensions", type=int, default=256)
    flags.add_argument("--max_seq_length", type=int, default=512, help="tokens")
    flags.add_argument("--dropout", type=float, default=0.1)
    flags.add_argument("--attention_dropout", type=float, help="default: as --dropout")
    flags.add_argument("--chunk_tokens", type=int, help="koir's padded tokens a chunk; default: as --chunk_tokens auto")
    flags.add_argument("--compile", action="store_true", help="compile koir's and the ideal's layers (GPUs)")
    flags.add_argument("--bf16", action="store_true", help="bfloat16 autocast for every engine")
    flags.add_argument("--rounds", type=int, default=3, help="timed steps of each engine; the fastest counts")
    flags.add_argument("--sweep_batch", type=int, default=64, help="rows that the sweeps run on")
    flags.add_argument("--ours_only", action="store_true", help="leave the other engines out")
    flags.add_argument("--rival", help="sentence-transformers' setting, as a sweep named it, instead of a sweep")
    flags.add_argument("--engines", nargs="+", choices=ENGINES, help="time only these on all rows; default: all")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--json", type=Path)
    return flags


@exit_on_user_error
def main() -> None:
    """Print the tables, and write them with --json."""
    arguments = parser().parse_args()
    for flag in ("batch", "sweep_batch", "rounds"):
        require(getattr(arguments, flag) > 0, f"--{flag}", str(getattr(arguments, flag)), "at least 1")
    if arguments.json:  # not only after all has run
        there = arguments.json.parent.is_dir()
        require(there, f"--json {arguments.json}", "no such folder", "a file in a folder that is there")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.bf16 and not has_bfloat16(device):
        sys.exit("error: --bf16: this chip does not multiply bfloat16 (AVX512-BF16, AMX or a GPU since Ampere does)")
    encoder = make_encoder(arguments, device)
    if arguments.compile:
        if device.type != "cuda":
            sys.exit("error: --compile: no GPU")
        compile_layers(encoder.transformer)
    bench = Bench(encoder, read_rows(arguments, encoder.tokenizer), arguments.bf16, device, arguments.compile)
    tokens = sum(len(ids) for row in bench.rows for ids in row)
    facts = origin() | {"threads": torch.get_num_threads(), "tokens": tokens}
    settle(bench, arguments, tokens)
    facts["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "")
    facts |= {name: value for name, value in vars(arguments).items() if name != "json"}
    print(json.dumps(facts))
    facts |= measure(bench, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
