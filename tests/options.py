"""Every option of the loss, cached and tiled against the whole batch's plain matrix; alone or in several processes.

As a command, in three processes: python options.py OUT.pt '{"rows": FILE}' saves each option's gradients on three
processes, and then on two.
"""

import json
import os
import sys

import torch
from one_step import tiny_encoder

from koir.arguments import LossArguments
from koir.batches import Collator
from koir.contrast import Contrast, merged_answers
from koir.gather import average_gradients, rank, world_size
from koir.gradcache import GradientCache
from koir.losses import right_answers
from koir.triplets import load_triplets

GUIDE = {"guide_model_name_or_path": "another"}
EVERYTHING = GUIDE | {"false_negative_margin": 0.002, "symmetric_weight": 0.7, "distillation": "kl",
                      "matryoshka_dimensions": [32, 12, 8], "matryoshka_weights": [1.0, 0.5, 0.3]}  # fmt: skip
OPTIONS = {
    "plain": {},
    "guide": GUIDE,
    "absolute margin": GUIDE | {"false_negative_margin": 0.004},
    "relative margin": GUIDE | {"false_negative_margin": 0.004, "margin_type": "relative"},
    "its own guide": {"guide_model_name_or_path": "self", "false_negative_margin": -0.02},
    "symmetric": {"symmetric_weight": 0.5},
    "matryoshka": {"matryoshka_dimensions": [16, 32, 5]},
    "kl": {"distillation": "kl", "distillation_weight": 2.0, "teacher_temperature": 3.0},
    "margin mse": {"distillation": "margin_mse", "distillation_weight": 0.01},
    "everything": EVERYTHING,
}


def setting(option, dropout=0.0):
    """Encoder, guide and flags of one option, in float64."""
    encoder = tiny_encoder(dropout, torch.float64).train()
    loss = LossArguments(temperature=0.05, **OPTIONS[option])
    guide = None
    if loss.guide_model_name_or_path == "another":
        guide = tiny_encoder(0.5, torch.float64).eval()
        guide.prompts, guide.max_seq_length = {"query": "질의 ", "document": ""}, 20
        for parameter in guide.parameters():
            parameter.data = parameter.data.roll(1, 0)
    return encoder, guide, loss


def of(encoder):
    """name -> gradient."""
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def batches(rows, encoder, guide, loss, accumulation=1, chunk_tokens=40):
    """The batches of one step on this process: all rows, in as many parts as processes and accumulated batches."""
    pairs = list(load_triplets([str(rows)]).pairs)
    collator = Collator(encoder, chunk_tokens, None, guide, loss.distillation is not None)
    parts = torch.arange(len(pairs)).tensor_split(accumulation)
    mine = [part.tensor_split(world_size())[rank()] for part in parts]
    return [collator([pairs[row] for row in part]) for part in mine]


def cached(rows, option, dropout=0.0, keep=0, accumulation=1, chunk_tokens=40):
    """Gradients of one step as v1.1 takes it, averaged over processes."""
    encoder, guide, loss = setting(option, dropout)
    torch.manual_seed(1)
    contrast = Contrast(loss, guide)
    cache = GradientCache(lambda chunk: encoder([chunk]), lambda value: value.backward(), keep)
    for batch in batches(rows, encoder, guide, loss, accumulation, chunk_tokens):
        cache(batch["chunks"], lambda vectors, batch=batch: contrast(vectors, batch)[0] / accumulation)
    average_gradients(list(encoder.parameters()))
    return of(encoder)


def plain(rows, option, dropout=0.0, accumulation=1):
    """The same gradients from the definition: one graph, whole matrices, no function of ours but the masks' hashes."""
    encoder, guide, loss = setting(option, dropout)
    torch.manual_seed(1)
    for batch in batches(rows, encoder, guide, loss, accumulation):
        vectors = encoder(batch["chunks"])[batch["inverse"]]  # [U, D]
        (naive_loss(vectors, batch, guide, loss) / accumulation).backward()
    return of(encoder)


def everything(rows, chunk_tokens):
    """option -> its gradients, and those of two accumulated batches."""
    found = {option: cached(rows, option, chunk_tokens=chunk_tokens) for option in OPTIONS}
    return found | {"accumulated": cached(rows, "everything", chunk_tokens=chunk_tokens, accumulation=2)}


def naive_loss(vectors, batch, guide, loss):
    """The mean over the batch's queries of every term that `loss` asks for."""
    queries, documents, own = vectors[batch["query"]], vectors[batch["document"]], batch["target"]
    b = len(queries)
    answers = right_answers(merged_answers(batch["query_hash"], batch["known"]), batch["document_hash"])  # [b, n]
    false = torch.zeros_like(answers)
    false_back = false[:, :b]
    if loss.guide_model_name_or_path:
        if guide is None:
            likeness = (queries @ documents.T).detach()  # [b, n]
        else:
            with torch.no_grad():
                seen = guide(batch["guide"]["chunks"])[batch["guide"]["inverse"]]
            likeness = seen[batch["guide"]["query"]] @ seen[batch["guide"]["document"]].T  # [b, n]
        right = likeness.diag()  # [b]
        bar = right * (1 - loss.false_negative_margin)
        bar = right - loss.false_negative_margin if loss.margin_type == "absolute" else bar
        false, false_back = likeness > bar[:, None], likeness[:, :b] > bar[None, :]
        assert (false & ~answers).sum() > b  # the option does something here
    mine = torch.eye(b, len(documents), dtype=torch.bool)
    left_out, left_out_back = (answers | false) & ~mine, (answers[:, :b] | false_back) & ~mine[:, :b]
    sizes = loss.matryoshka_dimensions or [vectors.shape[1]]
    weights = loss.matryoshka_weights or [1.0] * len(sizes)
    total = 0
    for size, weight in zip(sizes, weights, strict=True):
        q, d = (torch.nn.functional.normalize(side[:, :size], dim=1) for side in (queries, documents))
        scores = q @ d.T / loss.temperature  # [b, n]
        value = torch.nn.functional.cross_entropy(scores.masked_fill(left_out, -torch.inf), own)
        back = scores[:, :b].masked_fill(left_out_back, -torch.inf).T  # [b, b]
        value = value + loss.symmetric_weight * torch.nn.functional.cross_entropy(back, own)
        if loss.distillation:
            value = value + loss.distillation_weight * _distilled(scores, batch, loss) / b
        total = total + weight / sum(weights) * value
    return total


def _distilled(scores, batch, loss):
    """Row by row, with no padding."""
    total = 0
    for row, (columns, teacher) in enumerate(zip(batch["teacher_columns"], batch["teacher_scores"], strict=True)):
        there = columns >= 0
        ours, theirs = scores[row][columns[there]], teacher[there].double() / loss.teacher_temperature
        if loss.distillation == "kl":
            p = theirs.softmax(0)
            total = total + (p * (p.log() - ours.log_softmax(0))).sum()
        elif len(ours) > 1:
            total = total + ((ours[0] - ours[1:]) - (theirs[0] - theirs[1:])).square().mean()
    return total


if __name__ == "__main__":
    out, rows = sys.argv[1], json.loads(sys.argv[2])["rows"]
    number = int(os.environ["RANK"])
    found = {}
    for processes in (3, 2):  # one launch for both
        if number < processes:
            meeting = {"init_method": f"file://{out}.{processes}", "rank": number, "world_size": processes}
            torch.distributed.init_process_group("gloo", **meeting)
            found[processes] = everything(rows, 24 + 30 * number)
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    if number == 0:
        torch.save(found, out)
