"""Recipe dataclasses of reranker training; what it has in common with encoders is in arguments.py."""

import math
from dataclasses import dataclass, field

from koir.arguments import EvaluationArguments
from koir.flags import require
from koir.mining import Rules

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "kl")
TAUGHT = ("mse", "kl")  # losses that learn the rows' *_score columns


@dataclass
class RerankerModelArguments:
    """What training starts from: a cross-encoder, or an encoder that gets a new scoring head."""

    model_name_or_path: str = field(default="demo", metadata={"help": "run folder, model folder, hub name, or demo"})
    max_seq_length: int | None = field(
        default=None, metadata={"help": "tokens of query and document together; default: the model folder's, else 512"}
    )
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "keep only the first so many layers: a smaller, faster reranker; default: all"}
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


@dataclass
class GroupArguments:
    """What is learned from: rows, and the negatives that each query's document is told from."""

    train_data: list[str] = field(
        default_factory=lambda: ["demo"], metadata={"help": "rows: .jsonl, .jsonl.gz, .parquet, hub names, or demo"}
    )
    train_max_seq_length: int | None = field(
        default=None,
        metadata={"help": "tokens of a pair while training; the tuned model reads --max_seq_length; default: as many"},
    )
    group_size: int = field(default=8, metadata={"help": "documents a query: one right and its negatives, drawn anew"})
    negatives_from: str = field(
        default="rows",
        metadata={"help": "rows: their hard negatives; bm25, dense:PATH, hybrid:PATH: that first stage's candidates"},
    )
    negatives_depth: int = field(
        default=50, metadata={"help": "candidates of a first stage, over all the rows' documents, to take them from"}
    )
    max_ratio: float = field(
        default=0.95,
        metadata={"help": "a first stage's candidate above this share of the right document's score is left out"},
    )
    random_negatives_until: float = field(
        default=0.0, metadata={"help": "share of training with random documents for negatives, before hard ones"}
    )

    def check(self) -> None:
        """Raise FlagError for contradictions."""
        require(bool(self.train_data), "--train_data", "nothing", "at least one file, hub name or demo")
        require(self.group_size >= 2, "--group_size", str(self.group_size), "at least 2: one right, one negative")
        require(self.negatives_depth >= 1, "--negatives_depth", str(self.negatives_depth), "at least 1")
        length = self.train_max_seq_length
        require(length is None or length >= 8, "--train_max_seq_length", str(length), "at least 8 tokens")
        share, ratio = self.random_negatives_until, self.max_ratio
        require(0 <= share <= 1, "--random_negatives_until", str(share), "0 (never) to 1 (always)")
        Rules(max_ratio=ratio)  # refuses what is no ratio
        own = self.negatives_from == "rows"
        require(not own or ratio == 0.95, "--max_ratio", "--negatives_from rows", "a first stage in --negatives_from")
        require(not own or self.negatives_depth == 50, "--negatives_depth", "--negatives_from rows",
                "a first stage in --negatives_from")  # fmt: skip


@dataclass
class RankingLossArguments:
    """How scores are judged."""

    loss: str = field(
        default="cross_entropy",
        metadata={
            "choices": list(LOSSES),
            "help": "mse and kl learn a teacher's logits from the rows' *_score columns",
        },
    )
    teacher_temperature: float = field(default=1.0, metadata={"help": "kl: the teacher's logits are divided by it"})

    def check(self) -> None:
        """Raise FlagError for contradictions."""
        softness = self.teacher_temperature
        require(0 < softness < math.inf, "--teacher_temperature", str(softness), "above 0")
        softened = self.teacher_temperature != 1
        require(self.loss == "kl" or not softened, "--teacher_temperature", f"--loss {self.loss}", "--loss kl")


@dataclass
class RerankingArguments(EvaluationArguments):
    """What is measured while training and at its end."""

    first_stage: str = field(
        default="bm25", metadata={"help": "its candidates are reranked on --eval_tasks: bm25, dense:PATH, hybrid:PATH"}
    )
    eval_depth: int = field(default=20, metadata={"help": "candidates handed to the reranker there"})


def check_together(groups: dict) -> None:
    """Raise FlagError where loss and negatives contradict each other."""
    loss, data, evaluation = groups["loss"].loss, groups["data"], groups["evaluation"]
    unscored = data.negatives_from != "rows" or data.random_negatives_until > 0
    require(loss not in TAUGHT or not unscored, f"--loss {loss}", "negatives without a teacher's score",
            "--negatives_from rows and no --random_negatives_until")  # fmt: skip
    require(evaluation.eval_depth >= 1, "--eval_depth", str(evaluation.eval_depth), "at least 1")
