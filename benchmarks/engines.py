"""One optimisation step as each engine takes it: koir, the uncached ideal, sentence-transformers and GradCache."""

import dataclasses
import functools
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir import lanes
from koir.encoder import Encoder
from koir.gradcache import GradientCache
from koir.losses import info_nce
from koir.tokens import chunked, pad

TEMPERATURE = 0.02
DEFAULT_RIVAL = "mini_batch_size=32"  # what sentence-transformers takes by itself
# sentence-transformers' settings by device
ROWS_SWEEP = {"cpu": (4, 8, 16, 32, 64), "cuda": (32, 64, 128, 256)}
TOKENS_SWEEP = {"cpu": (512, 1024, 2048, 4096), "cuda": (8192, 16384, 32768)}


@dataclasses.dataclass
class Bench:
    """What every engine is given. rows: int32 token ids of (query, document, hard negative) of each row."""

    encoder: Encoder
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    half: bool
    device: torch.device
    compiled: bool = False

    def autocast(self) -> torch.autocast:
        """bfloat16 where asked for, else nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def columns(self) -> list[list[np.ndarray]]:
        """The rows' token ids by column: queries, documents, hard negatives."""
        return [list(column) for column in zip(*self.rows, strict=True)]

    def chunks(self, tokens: int) -> tuple[list[dict], torch.Tensor, torch.Tensor]:
        """Padded chunks of the distinct texts; where the B queries and the 2B documents stand among them."""
        place: dict[bytes, int] = {}
        queries, documents, negatives = (
            [place.setdefault(ids.tobytes(), len(place)) for ids in column] for column in self.columns()
        )
        encoder = self.encoder
        sequences = [np.frombuffer(ids, dtype=np.int32) for ids in place]
        chunks, inverse = chunked(sequences, encoder.tokenizer.pad_token_id, tokens, encoder.max_seq_length)
        chunks = [{name: tensor.to(self.device) for name, tensor in chunk.items()} for chunk in chunks]
        inverse = inverse.to(self.device)
        return chunks, inverse[queries], inverse[documents + negatives]


def contrast(embeddings: torch.Tensor, queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """InfoNCE of B queries against 2B documents, all rows of embeddings [U, D]."""
    target = torch.arange(len(queries), device=embeddings.device)
    return info_nce(embeddings[queries], embeddings[documents], target, TEMPERATURE)


twin_of = functools.cache(lanes.twin_of)  # as in training, once


def koir_step(bench: Bench, chunk_tokens: int, keep: float) -> float:
    """Gradient-cached; graphs of a share `keep` of the padded tokens are kept."""
    chunks, queries, documents = bench.chunks(chunk_tokens)
    room = keep * sum(chunk["input_ids"].numel() for chunk in chunks)

    def encode(chunk: dict, encoder: Encoder = bench.encoder) -> torch.Tensor:
        with bench.autocast():
            return encoder.embed(chunk)

    twin = twin_of(bench.encoder).refreshed() if lanes.pays(bench.device) else None
    cache = GradientCache(encode, torch.Tensor.backward, room, bench.compiled, twin)
    return cache(chunks, lambda embeddings: contrast(embeddings, queries, documents)).item()


def ideal_step(bench: Bench, chunk_tokens: int) -> float:
    """One graph over everything."""
    chunks, queries, documents = bench.chunks(chunk_tokens)
    with bench.autocast():
        embeddings = bench.encoder(chunks)
    loss = contrast(embeddings, queries, documents)
    loss.backward()
    return loss.item()


def rival_step(bench: Bench, loss: torch.nn.Module) -> float:
    """sentence-transformers' cached loss, fed as its collator would.

    Each column is padded to its longest text, or, for a model that has flash-attn, one row of all its texts.
    """
    module = loss.model[0]
    if getattr(module, "can_flatten_inputs", False):
        columns = [module.data_collator([{"input_ids": ids.tolist()} for ids in column]) for column in bench.columns()]
        for column in columns:
            column.pop("labels")
            column["position_ids"] += module._flatten_position_offset
    else:
        columns = [pad(column, bench.encoder.tokenizer.pad_token_id) for column in bench.columns()]
    features = [
        {name: value.to(bench.device) if torch.is_tensor(value) else value for name, value in column.items()}
        for column in columns
    ]
    with bench.autocast():
        value = loss(features, torch.arange(len(bench.rows), device=bench.device))
        value.backward()
    return value.item()


@functools.cache
def rival_model(encoder: Encoder, device: torch.device, attention: str = "sdpa") -> torch.nn.Module | None:
    """The same encoder as a SentenceTransformer that shares its weights; None where the package is absent."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "model")
        how = {"attn_implementation": attention}
        model = SentenceTransformer(str(Path(folder) / "model"), device=str(device), model_kwargs=how)
    inside = next(module for module in model.modules() if type(module) is type(encoder.transformer))
    ours = dict(encoder.transformer.named_parameters())
    for name, parameter in inside.named_parameters():
        parameter.data = ours[name].data
    return model


def rivals(bench: Bench) -> dict[str, Callable[[], float]]:
    """Every setting of the sweep as a step; `.parameters` of the step's model hold its gradients."""
    model = rival_model(bench.encoder, bench.device)
    if model is None:
        print("  sentence-transformers is not installed: skipped")
        return {}
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss as Cached

    settings = {f"mini_batch_size={n}": {"mini_batch_size": n} for n in ROWS_SWEEP[bench.device.type]}
    settings |= {f"mini_batch_num_tokens={n}": {"mini_batch_num_tokens": n} for n in TOKENS_SWEEP[bench.device.type]}
    models = {"": model}
    if bench.device.type == "cuda" and bench.half:
        if importlib.util.find_spec("flash_attn"):
            models[", flattened"] = rival_model(bench.encoder, bench.device, "flash_attention_2")
        else:
            print("  flash-attn is not installed: sentence-transformers pads")
    steps = {}
    for (how, model), (name, setting) in itertools.product(models.items(), settings.items()):
        steps[name + how] = functools.partial(rival_step, bench, Cached(model, scale=1 / TEMPERATURE, **setting))
        steps[name + how].model = model
    return steps


@functools.cache
def grad_cache(float32_on_cpu: bool) -> type | None:
    """The original GradCache; None, and once a line that says so, where it is absent or was never tried."""
    if not float32_on_cpu:
        print("GradCache: left out, only tried in float32 on a CPU")
        return None
    try:
        from grad_cache import GradCache
    except ImportError:
        print("GradCache: not installed, skipped (pip install git+https://github.com/luyug/GradCache)")
        return None
    return GradCache


def gradcache_step(bench: Bench, rows: int) -> Callable[[], float] | None:
    """The original GradCache, rows a chunk, every column padded to its longest text; None where it is not run."""
    original = grad_cache(bench.device.type == "cpu" and not bench.half)
    if original is None:
        return None

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = bench.encoder

        def forward(self, **chunk):
            return self.encoder.embed(chunk)

    def loss(queries, documents):
        return info_nce(queries, documents, torch.arange(len(queries)), TEMPERATURE)

    cache = original([Model(), Model()], chunk_sizes=rows, loss_fn=loss)

    def step() -> float:
        queries, documents, negatives = bench.columns()
        padding = bench.encoder.tokenizer.pad_token_id
        return cache(pad(queries, padding), pad(documents + negatives, padding)).item()

    return step
