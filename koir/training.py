"""What v1 and v1.1 share around the step: batches of distinct texts, the loss over processes, dev scores."""

import functools
import sys
from pathlib import Path

import pyarrow.compute as pc
import torch

from koir import lora
from koir.arguments import TrainingArguments
from koir.batches import Collator, require_scores
from koir.contrast import Contrast, NotFinite
from koir.encoder import Encoder, load_encoder
from koir.errors import ModelError, RunError
from koir.evaluation import pipeline
from koir.flags import require
from koir.gather import sum_over_processes, world_size
from koir.retrieval import stages
from koir.runs.interruptions import broken_loss, refuse_broken
from koir.runs.trainer import RunTrainer
from koir.sampling import OneSourceBatches, RandomOrder
from koir.triplets import Triplets, answers_of_repeated


def prepare(encoder: Encoder, triplets: Triplets, groups: dict) -> None:
    """What the flags ask of a loaded encoder before it trains: LoRA's matrices and the guide, as `groups["guide"]`.

    groups: the argument dataclasses by name. Raises FlagError, ModelError or RowError where encoder or rows do not
    have what a flag needs.
    """
    model, loss, most = groups["model"], groups["loss"], groups["data"].max_hard_negatives
    counts = pc.list_value_length(triplets.pairs.data.column("hard_negatives"))
    if most is not None and groups["training"].process_index == 0:
        there, used = pc.sum(counts).as_py(), pc.sum(pc.min_element_wise(counts, most)).as_py()
        if used < there:
            print(f"note:    {there - used:,} of the rows' {there:,} hard negatives are not used, as "
                  f"--max_hard_negatives {most} says", file=sys.stderr)  # fmt: skip
    largest = max(loss.matryoshka_dimensions, default=0)
    expected = f"at most {encoder.dimensions}, the encoder's dimensions"
    require(largest <= encoder.dimensions, "--matryoshka_dimensions", str(largest), expected)
    if 0 < largest < encoder.dimensions and groups["training"].process_index == 0:
        whole = f"whole vectors, of {encoder.dimensions:,}, get no loss of their own"
        print(f"note:    --matryoshka_dimensions ends at {largest:,}: {whole}", file=sys.stderr)
    together = min(groups["training"].train_batch_size * world_size(), len(triplets.pairs))
    several = together > 1 or most != 0 and bool(pc.sum(counts).as_py())
    require(several, "--per_device_train_batch_size", "1, and no hard negatives",
            "2 or more: there is nothing to tell a document from")  # fmt: skip
    if loss.distillation is not None:
        flag = f"--distillation {loss.distillation}"
        require_scores(triplets, flag, groups["data"].max_hard_negatives, lone=False)
    if model.lora_rank is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(groups["training"].seed)  # the Trainer seeds later
            lora.add_adapters(encoder, model.lora_rank, model.lora_alpha or 2 * model.lora_rank, model.lora_targets)
    groups["guide"] = None
    if loss.guide_model_name_or_path not in (None, "self"):
        path = loss.guide_model_name_or_path
        try:
            guide = load_encoder(path, default_prompts=encoder.prompts, trust_remote_code=model.trust_remote_code)
        except ModelError as error:
            raise ModelError(f"--guide_model_name_or_path {error.place}", error.found, error.expected) from None
        guide = guide.to(groups["training"].device)
        guide.max_seq_length = min(guide.max_seq_length, encoder.max_seq_length)  # it need not see more than we do
        groups["guide"] = guide.eval().requires_grad_(False)


class EmbeddingTrainer(RunTrainer):
    """The Trainer around a bi-encoder; v1 and v1.1 add their step and nothing else."""

    COUNTED = (*RunTrainer.COUNTED, "queries", "all_negatives")

    def __init__(self, encoder: Encoder, args: TrainingArguments, triplets: Triplets, groups: dict):
        self.loss_arguments, self.step_arguments = groups["loss"], groups.get("step")
        data, guide = groups["data"], groups.get("guide")
        distillation = self.loss_arguments.distillation is not None
        collator = Collator(
            encoder, groups["chunks"].chunk_tokens, data.max_hard_negatives, guide, distillation,
            data.train_max_seq_length, answers_of_repeated(triplets.pairs),
        )  # fmt: skip
        super().__init__(encoder, args, triplets.pairs, collator, groups["dev_tasks"])
        self.data_arguments, self.tokenizer = data, encoder.tokenizer
        self.queries = self.all_negatives = 0
        # not accelerate's, which is none under DeepSpeed
        half = torch.bfloat16 if args.bf16 else torch.float16
        autocast = functools.partial(torch.autocast, args.device.type, half, enabled=args.bf16 or args.fp16)
        self.judged = Contrast(self.loss_arguments, guide, autocast)

    def contrast(self, embeddings: torch.Tensor, batch: dict) -> torch.Tensor:
        """The loss of this process's rows against all texts of the global batch, as `Contrast` scales it.

        Raises RunError, with step, chunk and text, where an embedding or the loss is not finite.
        """
        step = self.state.global_step + 1
        refuse_broken(step, embeddings, batch["chunks"], self.tokenizer)
        try:
            loss, negatives = self.judged(embeddings, batch)
        except NotFinite as error:
            rows = batch["inverse"][batch["query"][error.rows]].tolist()
            raise broken_loss(step, error.loss, rows, "queries", batch["chunks"], self.tokenizer) from None
        self.queries += len(batch["query"])
        self.all_negatives = self.all_negatives + negatives * len(batch["query"])
        self.steps += 1
        self.tokens += batch["tokens"]
        return loss

    def facts(self) -> dict:
        """What run.json says of the training itself, on all processes; negatives_per_query leaves right answers out."""
        negatives, queries = sum_over_processes(round(float(self.all_negatives)), self.queries)
        return {"negatives_per_query": negatives / max(queries, 1)} | super().facts()

    def dev_scores(self) -> dict[str, float]:
        """nDCG@10 of the dev tasks, by exact search with the encoder as it is now, in the precision of training."""
        encoder = self.accelerator.unwrap_model(self.model)
        scores = {}
        for task in self.dev_tasks:
            stage = stages.in_memory(encoder, bf16=self.args.bf16, share=self.share)
            done = pipeline.evaluate_first_stage(stage, task, pipeline.Pipeline("dense"))
            (row,) = done.content["scores"][task.split]
            scores[f"{task.name}/ndcg_at_10"] = row["ndcg_at_10"]
        return scores

    def _get_train_sampler(self, train_dataset: object = None) -> RandomOrder:
        rows, epoch = self.train_dataset, lambda: int(self.state.epoch or 0)  # accelerate tells no epoch on resuming
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.data_arguments.batch_by == "random":
            return RandomOrder(len(rows), seed, epoch)
        batch = self.args.train_batch_size * world_size()
        say = self.is_world_process_zero()
        return OneSourceBatches(rows["source"], batch, self.data_arguments.source_alpha, seed, epoch, say)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        encoder, folder = self.accelerator.unwrap_model(self.model), Path(output_dir)
        if not lora.has_adapters(encoder):
            return super()._save(output_dir, state_dict)
        if self.args.should_save:
            encoder.save(folder, lora.merged(encoder))
            if folder.name.startswith("checkpoint-"):
                lora.save_adapters(encoder, folder)
            self._save_counters(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if lora.has_adapters(self.model):
            return lora.load_adapters(self.model, folder)
        if (folder / lora.FILE).exists():
            raise RunError(f"--resume_from_checkpoint {folder}", "a run with --lora_rank", "the flags it began with")
        super()._load_from_checkpoint(resume_from_checkpoint, model)
