"""What v1 and v1.1 share around the step: batches of distinct texts, the loss over processes, dev scores."""

import torch

from koir.arguments import TrainingArguments
from koir.batches import Collator
from koir.contrast import Contrast
from koir.encoder import Encoder
from koir.evaluation import pipeline
from koir.gather import world_size
from koir.interruptions import refuse_broken, refuse_broken_loss
from koir.retrieval import stages
from koir.sampling import OneSourceBatches, RandomOrder
from koir.trainer import RunTrainer
from koir.triplets import Triplets


class EmbeddingTrainer(RunTrainer):
    """The Trainer around a bi-encoder; v1 and v1.1 add their step and nothing else."""

    def __init__(self, encoder: Encoder, args: TrainingArguments, triplets: Triplets, groups: dict):
        self.loss_arguments, self.step_arguments = groups["loss"], groups.get("step")
        data, guide = groups["data"], groups.get("guide")
        distillation = self.loss_arguments.distillation is not None
        collator = Collator(encoder, groups["chunks"].chunk_tokens, data.max_hard_negatives, guide, distillation)
        super().__init__(encoder, args, triplets.pairs, collator, groups["dev_tasks"])
        self.sampling, self.texts, self.negatives = data, encoder.tokenizer, 0
        self.judged = Contrast(self.loss_arguments, guide, self.accelerator.autocast)

    def contrast(self, embeddings: torch.Tensor, batch: dict) -> torch.Tensor:
        """The loss of this process's rows against all texts of the global batch, as `Contrast` scales it."""
        step = self.state.global_step + 1
        refuse_broken(step, embeddings, batch["chunks"], self.texts)
        loss, negatives = self.judged(embeddings, batch)
        refuse_broken_loss(step, loss)
        self.negatives = self.negatives + negatives
        self.steps += 1
        self.tokens += batch["tokens"]
        return loss

    def facts(self) -> dict:
        """What run.json says of the training itself; negatives_per_query leaves right answers out."""
        return {"negatives_per_query": float(self.negatives) / max(self.steps, 1)} | super().facts()

    def dev_scores(self) -> dict[str, float]:
        """nDCG@10 of the dev tasks, by exact search with the encoder as it is now."""
        encoder = self.accelerator.unwrap_model(self.model)
        scores = {}
        for task in self.dev_tasks:
            done = pipeline.evaluate_first_stage(stages.in_memory(encoder), task, "dense")
            (row,) = done.content["scores"][task.split]
            scores[f"{task.name}/ndcg_at_10"] = row["ndcg_at_10"]
        return scores

    def _get_train_sampler(self, train_dataset: object = None) -> RandomOrder:
        rows, epoch = self.train_dataset, lambda: int(self.state.epoch or 0)
        if self.sampling.batch_by == "random":
            return RandomOrder(len(rows), self.args.seed, epoch)
        batch = self.args.train_batch_size * world_size()
        say = self.is_world_process_zero()
        return OneSourceBatches(rows["source"], batch, self.sampling.source_alpha, self.args.seed, epoch, say)
