"""Recipe dataclasses: every flag of training, with its default, its unit and what it does."""

import datetime
import math
import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from transformers import TrainingArguments as HfTrainingArguments

from koir.flags import require
from koir.kernels.bfloat16 import or_float32
from koir.zero import be_the_only_process, require_agreement, require_configuration


@dataclass
class ModelArguments:
    """What training starts from, and how texts become vectors."""

    model_name_or_path: str = field(default="demo", metadata={"help": "run folder, model folder, hub name, or demo"})
    pooling: str | None = field(
        default=None,
        metadata={"choices": ["mean", "cls", "lasttoken"], "help": "default: as the model folder says, else mean"},
    )
    max_seq_length: int | None = field(default=None, metadata={"help": "tokens; default: the model folder's, else 512"})
    query_prompt: str | None = field(default=None, metadata={"help": "default: the model folder's, else 'query: '"})
    document_prompt: str | None = field(
        default=None, metadata={"help": "default: the model folder's, else 'passage: '"}
    )
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "keep only the first so many layers: a smaller, faster encoder; default: all"}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "probability after embeddings and layers; default: the model's own"}
    )
    attention_dropout: float | None = field(
        default=None,
        metadata={"help": "probability on attention weights (0 lets fused attention run); default: the model's"},
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run code that comes with the model; read it first"}
    )
    lora_rank: int | None = field(
        default=None,
        metadata={"help": "train matrices of this rank beside frozen weights (LoRA); default: all weights"},
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "the matrices' product is scaled by it over the rank; default: twice the rank"}
    )
    lora_targets: list[str] = field(
        default_factory=list, metadata={"help": "names of the linear layers that get matrices; default: all of them"}
    )

    def check(self) -> None:
        """Raise FlagError for contradictions."""
        rank, alpha = self.lora_rank, self.lora_alpha
        require(rank is None or rank > 0, "--lora_rank", str(rank), "at least 1")
        require(alpha is None or 0 < alpha < math.inf, "--lora_alpha", str(alpha), "above 0")
        for flag in ("lora_alpha", "lora_targets"):
            value = getattr(self, flag)
            require(rank is not None or not value, f"--{flag}", "no --lora_rank", "--lora_rank too")


@dataclass
class DataArguments:
    """What is learned from."""

    train_data: list[str] = field(
        default_factory=lambda: ["demo"], metadata={"help": "rows: .jsonl, .jsonl.gz, .parquet, hub names, or demo"}
    )
    max_hard_negatives: int | None = field(
        default=None, metadata={"help": "at most so many hard negatives of each row, the first ones; default: all"}
    )
    train_max_seq_length: int | None = field(
        default=None,
        metadata={"help": "tokens of a text while training; the tuned model reads --max_seq_length; default: as many"},
    )
    batch_by: str = field(
        default="random",
        metadata={"choices": ["random", "source"], "help": "source: all rows of a global batch are of one source"},
    )
    source_alpha: float = field(
        default=1.0,
        metadata={
            "help": "with --batch_by source, batches of a source are as rows^alpha; 1: one pass over all that fill one"
        },
    )

    def check(self) -> None:
        """Raise FlagError for contradictions."""
        most, alpha = self.max_hard_negatives, self.source_alpha
        require(most is None or most >= 0, "--max_hard_negatives", str(most), "0 or more")
        length = self.train_max_seq_length
        require(length is None or length >= 8, "--train_max_seq_length", str(length), "at least 8 tokens")
        require(bool(self.train_data), "--train_data", "nothing", "at least one file, hub name or demo")
        require(0 <= alpha <= 1, "--source_alpha", str(alpha), "0 (sources alike) to 1 (as their rows)")
        by_source = self.batch_by == "source"
        require(by_source or alpha == 1, "--source_alpha", f"--batch_by {self.batch_by}", "--batch_by source")


@dataclass
class LossArguments:
    """How embeddings are judged."""

    temperature: float = field(default=0.02, metadata={"help": "cosines are divided by it; smaller means sharper"})
    symmetric_weight: float = field(
        default=0.0, metadata={"help": "weight of the term from each document to the queries of the whole batch"}
    )
    guide_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "a frozen encoder that leaves false negatives out, or self: the model's own scores do"},
    )
    false_negative_margin: float = field(
        default=0.0,
        metadata={"help": "left out is what the guide finds likelier than the row's own document less this much"},
    )
    margin_type: str = field(
        default="absolute",
        metadata={"choices": ["absolute", "relative"], "help": "relative: the margin is a share of that likeness"},
    )
    distillation: str | None = field(
        default=None,
        metadata={"choices": ["kl", "margin_mse"], "help": "also learn the rows' *_score columns; default: no"},
    )
    distillation_weight: float = field(default=1.0, metadata={"help": "weight of that term; InfoNCE has 1"})
    teacher_temperature: float = field(
        default=1.0,
        metadata={"help": "the rows' scores are divided by it before the model's, which have --temperature"},
    )
    matryoshka_dimensions: list[int] = field(
        default_factory=list, metadata={"help": "the loss is the mean over so many leading dimensions, each made unit"}
    )
    matryoshka_weights: list[float] = field(
        default_factory=list, metadata={"help": "weights of that mean, one for each; default: alike"}
    )

    def check(self) -> None:
        """Raise FlagError for contradictions."""
        good, usual = 0 < self.temperature < math.inf, "above 0 (0.01 to 0.1 is usual)"
        require(good, "--temperature", str(self.temperature), usual)
        require(0 <= self.symmetric_weight < math.inf, "--symmetric_weight", str(self.symmetric_weight), "0 or more")
        margin = (self.false_negative_margin, self.margin_type) != (0, "absolute")
        guided = self.guide_model_name_or_path is not None
        require(guided or not margin, "--false_negative_margin", "no guide", "--guide_model_name_or_path too")
        margin = self.false_negative_margin
        require(math.isfinite(margin), "--false_negative_margin", str(margin), "a finite number")
        given = (self.distillation_weight, self.teacher_temperature)
        for flag, value in zip(("distillation_weight", "teacher_temperature"), given, strict=True):
            require(0 < value < math.inf, f"--{flag}", str(value), "above 0")
            require(
                self.distillation or value == 1, f"--{flag}", "no --distillation", "--distillation kl or margin_mse"
            )
        sizes, weights = self.matryoshka_dimensions, self.matryoshka_weights
        good = len(set(sizes)) == len(sizes) and all(size > 0 for size in sizes)
        require(good, "--matryoshka_dimensions", " ".join(map(str, sizes)), "different numbers above 0")
        good = not weights or (len(weights) == len(sizes) and all(0 < weight < math.inf for weight in weights))
        require(good, "--matryoshka_weights", " ".join(map(str, weights)), "one above 0 for each dimension")


@dataclass
class ChunkArguments:
    """How much goes through the encoder at once."""

    chunk_tokens: str = field(
        default="auto",
        metadata={
            "help": "padded tokens a chunk, texts sorted by length; auto: as a GPU's memory allows, 1,024 on a CPU"
        },
    )


@dataclass
class CacheArguments:
    """How the gradient cache runs (v1.1 and the reranker)."""

    cache_keep_tokens: str = field(
        default="auto",
        metadata={"help": "graphs of so many padded tokens stay in memory and are not run again; auto: as many as fit"},
    )
    compile: bool = field(
        default=False,
        metadata={"help": "torch.compile the layers (GPUs): steps a quarter faster, after a minute of compiling"},
    )


@dataclass
class EvaluationArguments:
    """What is measured while training and at its end."""

    eval_tasks: list[str] = field(default_factory=list, metadata={"help": "BEIR folders, or demo"})
    eval_split: str | None = field(
        default=None, metadata={"help": "split for scores while training; default: dev where a task has it, else said"}
    )


@dataclass
class TrainingArguments(HfTrainingArguments):
    """How long, how fast, where to: the Hugging Face Trainer's own flags, with our defaults."""

    output_dir: str | None = field(
        default=None, metadata={"help": "run folder; default: outputs/<trainer>-<recipe>-<time>"}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "peak learning rate"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the rows"})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "rows a process and step"})
    warmup_steps: float = field(default=0.1, metadata={"help": "steps, or below 1 the share of all steps"})
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={"help": "batches whose gradients a step adds up; their rows do not see each other's documents"},
    )
    logging_steps: float = field(
        default=1, metadata={"help": "steps between lines of metrics.jsonl, or below 1 the share of all steps"}
    )
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "save the model of the best dev score, in place of the last one"}
    )
    eval_strategy: str | None = field(
        default=None,
        metadata={
            "help": "epoch: scores after each epoch, first the base's, as step 0; no: none; default: steps with "
            "--eval_steps, else no"
        },
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "TASK/ndcg_at_10 of a dev task; default: the mean of all"}
    )
    save_steps: float = field(
        default=100, metadata={"help": "steps between checkpoints, or below 1 the share of all steps"}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    report_to: str = field(default="none", metadata={"help": "none, or wandb (WANDB_MODE=offline needs no network)"})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "a checkpoint folder, or last: the newest one of --output_dir or, without it, of the recipe's "
            "newest unfinished run; with the rows, seed and batch that it began with"
        },
    )

    def __post_init__(self):
        """--eval_steps N is enough to ask for scores every N steps."""
        require(self.eval_steps is None or self.eval_steps > 0, "--eval_steps", str(self.eval_steps), "above 0")
        if self.eval_strategy is None:
            self.eval_strategy = "no" if self.eval_steps is None else "steps"
        if self.eval_strategy == "no":
            self.eval_steps = None
        self.dataloader_pin_memory &= torch.cuda.is_available()
        self.remove_unused_columns = False  # rows reach the collator whole
        self.logging_nan_inf_filter = False  # a broken loss is to be seen
        config = self.deepspeed
        if config is not None:
            require_configuration(config)
            be_the_only_process()
        if "LOCAL_RANK" in os.environ:  # several processes: without use_cpu, each would take itself for the only one
            self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
            if self.use_cpu and not dist.is_initialized():  # the parent would forget ddp_timeout
                dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=self.ddp_timeout))
        if self.bf16 and (self.use_cpu or torch.cuda.is_available()):  # the parent takes emulation for it
            self.bf16 = or_float32(self.bf16, torch.device("cpu" if self.use_cpu else "cuda"), "--bf16")
        output_dir = self.output_dir
        super().__post_init__()
        self.output_dir = output_dir  # the parent turns None into a name of its own
        if config is not None:
            require_agreement(config, self.hf_deepspeed_config.mismatches)
