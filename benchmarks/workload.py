"""What the benchmarks of a step run on: XLM-RoBERTa with random weights, and rows of real lengths as token ids."""

import argparse
import functools
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.encoder import Encoder
from koir.flags import require
from koir.kernels.products import keep_few_compiled
from koir.manifest import DEMO
from koir.tokens import DEFAULT_PROMPTS, tokenise

HERE = Path(__file__).parent


def read_rows(arguments: argparse.Namespace, tokenizer) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Token ids of B rows, drawn with the seed; as int32, since Python's numbers take nine times the memory."""
    rng, longest = random.Random(arguments.seed), arguments.max_seq_length
    if arguments.train_data is None:
        sample = json.loads((HERE / "lengths.json").read_text(encoding="utf-8"))["lengths"]
        picked = [rng.choice(sample) for _ in range(arguments.batch)]
        word = functools.partial(rng.randrange, 5, 15_000)
        return [tuple(_ids(word() for _ in range(min(length, longest))) for length in row) for row in picked]
    from koir.triplets import load_triplets

    pairs = load_triplets([arguments.train_data]).pairs
    usable = [i for i, negatives in enumerate(pairs["hard_negatives"]) if negatives]
    found = f"{len(usable):,} rows with hard negatives in {arguments.train_data}"
    require(arguments.batch <= len(usable), f"--batch {arguments.batch}", found, "as many, or a smaller batch")
    picked = [pairs[i] for i in rng.sample(usable, arguments.batch)]
    columns = [
        [DEFAULT_PROMPTS["query"] + row["query"] for row in picked],
        [DEFAULT_PROMPTS["document"] + row["document"] for row in picked],
        [DEFAULT_PROMPTS["document"] + row["hard_negatives"][0] for row in picked],
    ]
    return list(zip(*(map(_ids, tokenise(tokenizer, column, longest)) for column in columns), strict=True))


def _ids(tokens: Iterable[int]) -> np.ndarray:
    return np.fromiter(tokens, dtype=np.int32)


def make_encoder(arguments: argparse.Namespace, device: torch.device) -> Encoder:
    """XLM-RoBERTa with random weights in the shape asked for."""
    keep_few_compiled()  # as in training
    config = AutoConfig.from_pretrained(DEMO / "base")
    config.num_hidden_layers, config.hidden_size = arguments.layers, arguments.dimensions
    config.intermediate_size = 4 * arguments.dimensions
    config.num_attention_heads = max(1, arguments.dimensions // 64)
    config.hidden_dropout_prob = arguments.dropout
    config.attention_probs_dropout_prob = (
        arguments.dropout if arguments.attention_dropout is None else arguments.attention_dropout
    )
    config.max_position_embeddings = arguments.max_seq_length + 2
    torch.manual_seed(arguments.seed)
    transformer = AutoModel.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    return Encoder(transformer, tokenizer, "mean", arguments.max_seq_length, DEFAULT_PROMPTS).to(device)
