"""How many padded tokens fit: one probe of the longest chunk, before any gradient is committed."""

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from koir.encoder import Encoder
from koir.errors import RunError, out_of_memory
from koir.flags import require
from koir.gather import gather_sizes, world_size
from koir.lanes import two_threads
from koir.tokens import CPU_CHUNK

PROBE_TOKENS = 4096
CGROUP = Path("/sys/fs/cgroup")
LARGEST_CHUNK = 65536
# Of the memory that is free of weights and optimizer; the rest is slack. A GPU waits for its launches below some 30,000
# tokens (benchmarks/results/train-step-gpu.md), so chunks come first there; on a CPU they are small anyway.
CHUNK_SHARE, KEEP_SHARE, KEEP_SHARE_CPU = 0.5, 0.25, 0.5


def settle(groups: dict, encoder: Encoder, earlier: Path | None) -> None:
    """Put numbers in the place of `auto` in --chunk_tokens and --cache_keep_tokens, the same on every process.

    groups: argument dataclasses by name (chunks, training, and step where the trainer caches). earlier: recipe.yaml of
    the run that is resumed: its numbers are taken, since another plan would draw other dropout masks. Raises FlagError
    for kept graphs under ZeRO 3 and for what is no number there, RunError where there is no memory to measure in.
    """
    args, chunks, step = groups["training"], groups["chunks"], groups.get("step")
    known = yaml.safe_load(earlier.read_text(encoding="utf-8")) if earlier and earlier.is_file() else {}
    device, here = args.device, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    frozen = groups.get("guide")
    parameters = sum(p.numel() for p in encoder.parameters())
    parameters += sum(p.numel() for p in frozen.parameters()) // 4 if frozen is not None else 0  # no gradient, no Adam
    twice = (step is not None and two_threads(args)) or (world_size() > 1 and not args.deepspeed)
    free = memory_for_training(parameters, device, here, twice)

    @functools.cache
    def token_bytes() -> float:
        half = torch.bfloat16 if args.bf16 else torch.float16
        try:
            with torch.autocast(device.type, half, enabled=args.bf16 or args.fp16):
                return bytes_per_token(encoder, device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            given = f"--chunk_tokens {encoder.max_seq_length}" + " --cache_keep_tokens 0" * (step is not None)
            found = f"none left to measure the graph of {max(PROBE_TOKENS, encoder.max_seq_length):,} tokens"
            expected = f"{given}, which need no measuring, a smaller model, or --activation_checkpointing true"
            raise RunError("memory", found, expected) from None

    def number(flag: str, value: str, automatic: Callable[[], float]) -> int:
        if value == "auto" and flag in known:
            value = str(known[flag])
            require(value == "auto" or value.isdecimal(), f"{earlier}: {flag}", value, "the number that the run wrote")
        return min(n for (n,) in gather_sizes(int(automatic()))) if value == "auto" else int(value)

    chunks.chunk_tokens = number("chunk_tokens", chunks.chunk_tokens, lambda: chunk_budget(free, token_bytes(), device))
    if step is not None:
        if args.deepspeed and args.hf_deepspeed_config.is_zero3():  # every forward is a collective there
            ours = step.cache_keep_tokens
            require(
                ours in ("auto", "0"), "--cache_keep_tokens", ours, "0 with ZeRO 3, whose ranks run the same forwards"
            )
            step.cache_keep_tokens = "0"
        room = functools.partial(keep_budget, free, device=device, chunk_tokens=chunks.chunk_tokens)
        step.cache_keep_tokens = number("cache_keep_tokens", step.cache_keep_tokens, lambda: room(token_bytes()))


def bytes_per_token(encoder: Encoder, device: torch.device) -> float:
    """What the graph of one padded token takes, measured forward and backward on texts as long as the encoder allows.

    Counted is what the graph holds until its backward; on a GPU by how much the peak of both passes grows with the
    chunk, where that is more. The random generators and the parameters' `.grad` are left as they were.
    """
    rows = max(1, PROBE_TOKENS // encoder.max_seq_length)
    held, peak = _probe(encoder, device, rows)
    tokens = rows * encoder.max_seq_length
    if device.type == "cuda":  # weights in half precision are in both peaks
        fewer = rows // 2
        grown = peak - _probe(encoder, device, fewer)[1] if fewer else peak
        held = max(held, grown * rows / (rows - fewer))
    return held / tokens


def _probe(encoder: Encoder, device: torch.device, rows: int) -> tuple[int, int]:
    """Bytes that the graph of a chunk of so many longest texts holds, and a GPU's peak of both passes."""
    width = encoder.max_seq_length
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    held: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    training = encoder.training
    chunk = {name: torch.ones(rows, width, dtype=torch.long, device=device) for name in ("input_ids", "attention_mask")}
    chunk["input_ids"] += 4  # any token but a special one
    devices = [device] if device.type == "cuda" else []
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    before = peak = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with torch.random.fork_rng(devices=devices), hooks:
        output = encoder.train()([chunk])
        made = torch.autograd.grad(output.sum(), trained, allow_unused=True)  # not added to `.grad`
    encoder.train(training)
    graph = sum(size for pointer, size in held.items() if pointer not in weights)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - before - sum(g.nbytes for g in made if g is not None)
    return graph, peak


def memory_for_training(parameters: int, device: torch.device, processes_here: int, twice: bool = False) -> float:
    """Bytes that weights, gradients and Adam's two moments leave of this process's share of the memory.

    twice: gradients are there twice, a second thread's or those that several processes exchange.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_memory()) / processes_here
    return max(total - (20 if twice else 16) * parameters, 0)


def _container_memory() -> float:
    """Bytes that a container may have (cgroup 2, else 1); infinite where there is no limit."""
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return float((CGROUP / file).read_text(encoding="ascii").replace("max", "inf"))
        except (OSError, ValueError):
            continue
    return math.inf


def chunk_budget(free: float, token_bytes: float, device: torch.device) -> int:
    """Padded tokens of one chunk: a power of two whose graph takes at most half of the free memory."""
    if device.type == "cpu":
        return CPU_CHUNK
    fits = max(CHUNK_SHARE * free / token_bytes, 512)
    return min(LARGEST_CHUNK, 1 << (int(fits).bit_length() - 1))


def keep_budget(free: float, token_bytes: float, device: torch.device, chunk_tokens: int) -> int:
    """Padded tokens whose graphs stay in memory: half of what is free on a CPU, else what a chunk leaves of 3/4."""
    if device.type == "cpu":
        return int(KEEP_SHARE_CPU * free / token_bytes)
    return max(0, int((CHUNK_SHARE + KEEP_SHARE) * free / token_bytes) - chunk_tokens)
