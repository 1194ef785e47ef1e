"""One real training step of v1 or v1.1, stopped before the optimizer: what the parameters' gradients were.

In a test: `gradients(...)`. As a command, alone or in several processes, for several steps, each anew:
python one_step.py OUT.pt '[{"version": "v1", ...}, ...]'.
"""

import functools
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from commands import loaded
from transformers import TrainerCallback, XLMRobertaConfig, XLMRobertaModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from koir import lora  # noqa: E402
from koir.arguments import CacheArguments, ChunkArguments, DataArguments, LossArguments, TrainingArguments  # noqa: E402
from koir.encoder import Encoder  # noqa: E402
from koir.errors import end_one_of_several  # noqa: E402
from koir.gather import leave_processes, rank  # noqa: E402
from koir.kernels.compiled import compile_layers  # noqa: E402
from koir.manifest import DEMO  # noqa: E402
from koir.tokens import DEFAULT_PROMPTS  # noqa: E402
from koir.triplets import load_triplets  # noqa: E402

TRAINERS = {"v1": "InfoNCETrainer", "v1.1": "GradCacheTrainer"}


def trainer_module(version):
    """v1/train.py, v1.1/train.py or reranker/train.py, loaded by path as finetune.sh runs it."""
    return loaded(f"{version}/train.py")


def trainer_class(version):
    """The trainer of v1 or v1.1."""
    return getattr(trainer_module(version), TRAINERS[version])


def tiny_encoder(dropout=0.0, dtype=torch.float32):
    """2 layers x 32 over the demo's tokenizer, weights from a fixed seed."""
    config = XLMRobertaConfig(
        vocab_size=15360, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        transformer = XLMRobertaModel(config).to(dtype)
    return Encoder(transformer, _tokenizer(), "mean", 128, DEFAULT_PROMPTS)


@functools.cache
def _tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO / "base")


class _Grab(TrainerCallback):
    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        self.gradients = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients(
    version, rows, folder, batch=8, accumulation=1, chunk_tokens=256, keep=0, dropout=0.0, double=False,
    temperature=0.05, max_hard_negatives=None, clip=0.0, loss=False, checkpointing=False, lora_rank=None, bf16=False,
    count=False, batch_by="random", compiled=False, terms=None,
):  # fmt: skip
    """name -> gradient after one optimisation step's backward, as the optimizer would see them."""
    torch.manual_seed(5)
    encoder = tiny_encoder(dropout, torch.float64 if double else torch.float32)
    if lora_rank is not None:
        lora.add_adapters(encoder, lora_rank, 2 * lora_rank)
    if compiled:
        compile_layers(encoder.transformer)
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=clip,
        activation_checkpointing=checkpointing,
        bf16=bf16,
        use_cpu=True,
        save_strategy="no",
        seed=3,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    groups = {
        "loss": LossArguments(temperature=temperature, **terms or {}),
        "chunks": ChunkArguments(chunk_tokens=chunk_tokens),
        "data": DataArguments(max_hard_negatives=max_hard_negatives, batch_by=batch_by),
        "dev_tasks": [],
        "step": CacheArguments(cache_keep_tokens=keep, compile=compiled),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    trainer = trainer_class(version)(encoder, args, load_triplets([str(rows)]), groups)
    grab = _Grab()
    trainer.add_callback(grab)
    if count:
        return collectives(trainer)
    result = trainer.train()
    return (grab.gradients, result.training_loss) if loss else grab.gradients


def collectives(trainer):
    """name -> how many of it one step issued, from Python or from within torch."""
    step, seen = trainer.training_step, Counter()

    def counted(*arguments):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            loss = step(*arguments)
        events = profile.key_averages()
        seen.update({event.key: event.count for event in events if event.key.startswith("c10d::")})
        return loss

    trainer.training_step = counted
    trainer.train()
    return dict(seen)


if __name__ == "__main__":
    out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    found = [gradients(folder=out.parent, **each) for each in settings]
    if rank() == 0:
        torch.save(found, out)
    leave_processes()
    end_one_of_several()
