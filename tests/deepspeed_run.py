"""Five AdamW steps of v1 or v1.1, plain or under DeepSpeed: python deepspeed_run.py OUT.pt '{"version": ...}'."""

import json
import sys
from pathlib import Path

import torch
from one_step import ROOT, tiny_encoder, trainer_class

from koir.arguments import CacheArguments, ChunkArguments, DataArguments, LossArguments, TrainingArguments
from koir.errors import end_one_of_several
from koir.gather import leave_processes, rank
from koir.triplets import load_triplets


def train(version, rows, folder, batch, accumulation, stage=0, keep=0, chunk_tokens=50):
    """The weights after five steps, gathered where ZeRO 3 has split them."""
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=5,
        learning_rate=1e-3,
        warmup_steps=0,
        lr_scheduler_type="constant",
        max_grad_norm=0.5,
        use_cpu=True,
        save_strategy="no",
        seed=3,
        deepspeed=str(ROOT / "v1.1" / "recipes" / f"zero{stage}.json") if stage else None,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    groups = {
        "loss": LossArguments(temperature=0.05),
        "chunks": ChunkArguments(chunk_tokens=chunk_tokens),
        "data": DataArguments(),
        "dev_tasks": [],
        "step": CacheArguments(cache_keep_tokens=keep),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    trainer = trainer_class(version)(tiny_encoder(), args, load_triplets([str(rows)]), groups)
    trainer.train()
    if stage == 3:
        return trainer.accelerator.get_state_dict(trainer.deepspeed)
    return trainer.model.state_dict()


if __name__ == "__main__":
    if "stage" in (settings := json.loads(sys.argv[2])):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a minute of C++ that gloo does without
    out = Path(sys.argv[1])
    weights = train(folder=out.parent / out.stem, **settings)
    if rank() == 0:
        torch.save({name: tensor.detach().float().cpu().clone() for name, tensor in weights.items()}, out)
    leave_processes()
    end_one_of_several()
