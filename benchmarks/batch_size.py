"""Does a larger batch buy quality? One small encoder from random weights, batch 32 (v1) to 4,096 (v1.1), equal epochs.

    .venv/bin/python benchmarks/batch_size.py --train_data ROWS --tasks TASK... --output_dir outputs/batch-size

First every batch climbs to the learning rate that dev likes best, one seed. Then the other seeds at that rate, then
the same with a hard negative a row, and without the masks that keep right answers from being negatives. A finished run
is kept in OUTPUT/runs and never made again, so the same command goes on where it stopped; --minutes bounds one call,
and no run begins that would not end within it. The table and the picture show test, as the mean over seeds, with 95%
intervals by bootstrap over queries of each query's mean over seeds.
"""

import importlib.util
import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import batch_picture  # noqa: E402

import koir.losses  # noqa: E402
from koir.encoder import Encoder, load_encoder  # noqa: E402
from koir.errors import exit_on_user_error  # noqa: E402
from koir.evaluation.metrics import evaluate_run  # noqa: E402
from koir.evaluation.significance import interval  # noqa: E402
from koir.evaluation.tasks import load_task, splits  # noqa: E402
from koir.flags import parse, require  # noqa: E402
from koir.manifest import DEMO, origin, read_run, write_json, write_text  # noqa: E402
from koir.text_tables import terminal_table  # noqa: E402
from koir.tokens import DEFAULT_PROMPTS  # noqa: E402

BY_V1 = 64  # up to this batch v1 trains: both give the same gradients, and it has no cache to pay for
VARIANTS = {"plain": "in-batch negatives", "hard": "and one hard negative", "unmasked": "no masks"}
SCORE = "ndcg_at_10"


@dataclass
class StudyArguments:
    """What is compared, on what, for how long."""

    train_data: list[str] = field(
        default_factory=lambda: ["demo"], metadata={"help": "rows, as the trainers take them"}
    )
    tasks: list[str] = field(default_factory=lambda: ["demo"], metadata={"help": "BEIR folders with dev and test"})
    output_dir: str = field(default="outputs/batch-size", metadata={"help": "runs, results.json, table and picture"})
    batches: list[int] = field(default_factory=lambda: [32, 128, 512, 2048, 4096], metadata={"help": "rows an update"})
    learning_rates: list[float] = field(
        default_factory=lambda: [5e-4, 1e-3, 2e-3, 4e-3, 8e-3], metadata={"help": "a batch's is one of these"}
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "the first one chooses the rate"})
    variants: list[str] = field(
        default_factory=lambda: list(VARIANTS), metadata={"help": "plain, and hard and unmasked at plain's rates"}
    )
    epochs: float = field(default=1.0, metadata={"help": "passes over the rows, the same at every batch"})
    max_seq_length: int = field(default=96, metadata={"help": "tokens of a text"})
    hidden_size: int = field(default=128, metadata={"help": "width of the encoder, two layers deep"})
    temperature: float = field(default=0.05, metadata={"help": "of InfoNCE"})
    minutes: float = field(default=90, metadata={"help": "no run begins that would not end within so many"})
    bf16: bool = field(default=False, metadata={"help": "matrix products in bfloat16"})


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    batch: int
    rate: float
    seed: int
    variant: str = "plain"

    @property
    def name(self) -> str:
        """Its file's name."""
        return f"{self.variant}-b{self.batch}-lr{self.rate:g}-s{self.seed}"


class Study:
    """Runs that are kept on disk, and what they say."""

    def __init__(self, settings: StudyArguments):
        self.settings, self.out = settings, Path(settings.output_dir)
        self.started, self.slowest, self.skipped = time.monotonic(), {}, []
        self.tasks = {split: [load_task(path, split) for path in settings.tasks] for split in ("dev", "test")}

    def result(self, run: Run) -> dict | None:
        """What the run gave, from disk where it is there; None where the time does not suffice."""
        file = self.out / "runs" / f"{run.name}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
        left = 60 * self.settings.minutes - (time.monotonic() - self.started)
        if left < self.slowest.get(run.batch, max(self.slowest.values(), default=0)):
            self.skipped.append(run.name)
            return None
        begun = time.monotonic()
        found = self._trained(run)
        self.slowest[run.batch] = max(self.slowest.get(run.batch, 0), time.monotonic() - begun)
        write_json(file, found)
        print(f"{run.name}: dev {found['dev']:.3f}, {found['seconds']:,.0f} s", file=sys.stderr)
        return found

    def _trained(self, run: Run) -> dict:
        folder = self.out / "work" / run.name
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        settings = self.settings
        flags = {
            "model_name_or_path": _start(self.out / "work", settings.hidden_size, run.seed),
            "output_dir": folder,
            "max_seq_length": settings.max_seq_length,
            "max_hard_negatives": int(run.variant == "hard"),
            "per_device_train_batch_size": run.batch,
            "num_train_epochs": settings.epochs,
            "learning_rate": run.rate,
            "weight_decay": 0.0,
            "temperature": settings.temperature,
            "save_strategy": "no",
            "seed": run.seed,
            "bf16": settings.bf16,
            "use_cpu": not torch.cuda.is_available(),
        }
        words = ["--train_data", *settings.train_data]
        for name, value in flags.items():
            words += [f"--{name}", str(value)]
        trainer = _command("v1" if run.batch <= BY_V1 else "v1.1")
        right_answers = koir.losses.right_answers
        if run.variant == "unmasked":
            koir.losses.right_answers = lambda known, hashes: torch.zeros(
                len(known), len(hashes), dtype=torch.bool, device=known.device
            )
        try:
            trainer.main(words)
        finally:
            koir.losses.right_answers = right_answers
        facts, encoder = read_run(folder), load_encoder(str(folder))
        found = {"updates": facts["steps"], "seconds": facts["wall_seconds"]}
        found |= {
            "negatives": facts["negatives_per_query"],
            "dev": statistics.mean(self._scores(encoder, "dev").values()),
        }
        found["test"] = {task.name: self._queries(encoder, task) for task in self.tasks["test"]}
        shutil.rmtree(folder)
        return found

    def _scores(self, encoder: Encoder, split: str) -> dict[str, float]:
        return {task.name: statistics.mean(self._queries(encoder, task).values()) for task in self.tasks[split]}

    def _queries(self, encoder: Encoder, task) -> dict[str, float]:
        ids, documents = np.array(list(task.corpus)), encoder.encode(list(task.corpus.values()), "document")
        scores = encoder.encode(list(task.queries.values()), "query") @ documents.T  # [Q, N]
        best = np.argsort(-scores, axis=1)[:, :10]
        run = {
            query: {str(ids[i]): float(of[i]) for i in top}
            for query, of, top in zip(task.queries, scores, best, strict=True)
        }
        return {query: scores[SCORE] for query, scores in evaluate_run(task.qrels, run).items()}

    def chosen_rate(self, batch: int, near: float) -> float | None:
        """The learning rate that dev likes better at this batch than both its neighbours, climbing from `near`."""
        rates, seed = sorted(self.settings.learning_rates), self.settings.seeds[0]
        at, tried = rates.index(near), {}
        while True:
            for rate in rates[max(at - 1, 0) : at + 2]:
                if found := self.result(Run(batch, rate, seed)):
                    tried[rate] = found["dev"]
            if not tried:
                return None
            best = max(tried, key=tried.get)
            if rates.index(best) == at:
                return best
            at = rates.index(best)

    def line(self, batch: int, rate: float, variant: str) -> dict | None:
        """One batch's results over seeds: per task and in the mean over tasks, value and interval."""
        runs = [self.result(Run(batch, rate, seed, variant)) for seed in self.settings.seeds]
        runs = [run for run in runs if run]
        if not runs:
            return None
        line = {"variant": variant, "batch": batch, "learning_rate": rate, "seeds": len(runs)}
        line |= {key: runs[0][key] for key in ("updates", "negatives")}
        line |= {"seconds": statistics.mean(run["seconds"] for run in runs), "scores": {}}
        for task in runs[0]["test"]:
            means = [statistics.mean(run["test"][task][query] for run in runs) for query in runs[0]["test"][task]]
            seeds = [statistics.mean(run["test"][task].values()) for run in runs]
            line["scores"][task] = {"value": statistics.mean(means), "interval": interval(means), "seeds": seeds}
        return line


def _start(folder: Path, width: int, seed: int) -> Path:
    """Two layers of random weights, a model folder."""
    made = folder / f"start-{width}-s{seed}"
    if not made.is_dir():
        torch.manual_seed(seed)
        sizes = {
            "hidden_size": width,
            "num_attention_heads": max(1, width // 32),
            "intermediate_size": 4 * width,
            "num_hidden_layers": 2,
            "hidden_dropout_prob": 0.0,
        }
        config = AutoConfig.from_pretrained(DEMO / "base", **sizes)
        tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
        Encoder(AutoModel.from_config(config), tokenizer, "mean", 512, DEFAULT_PROMPTS).save(made)
    return made


def _command(version: str):
    """v1/train.py or v1.1/train.py; the latter's folder cannot be imported by name."""
    spec = importlib.util.spec_from_file_location(f"train_{version.replace('.', '_')}", ROOT / version / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _report(study: Study, lines: list[dict]) -> None:
    tasks = [task.name for task in study.tasks["test"]]
    header = ["variant", "batch", "rate", "updates", "negatives", "seconds", "seeds", *tasks]
    rows = [
        [line["variant"], f"{line['batch']:,}", f"{line['learning_rate']:g}", f"{line['updates']:,}",
         f"{line['negatives']:,.0f}", f"{line['seconds']:,.0f}", str(line["seeds"]),
         *("{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]".format(**line["scores"][task]) for task in tasks)]
        for line in lines
    ]  # fmt: skip
    text = terminal_table(header, rows)
    print(text)
    for task in tasks:
        write_text(study.out / f"{task}.svg", batch_picture.drawn(lines, task, VARIANTS))
    write_text(study.out / "table.md", text + "\n")
    settings = vars(study.settings)
    write_json(study.out / "results.json", {"settings": settings, "lines": lines, "skipped": study.skipped} | origin())
    if study.skipped:
        print(f"{len(study.skipped)} runs did not fit into the time and were not begun; the same command goes on")


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Run what fits into the time, then show all that is there."""
    (settings,) = parse([StudyArguments], argv, __doc__, recipes=False)
    for variant in settings.variants:
        require(variant in VARIANTS, "--variants", variant, ", ".join(VARIANTS))
    for task in settings.tasks:
        require({"dev", "test"} <= set(splits(task)), f"--tasks {task}", "no dev and test split", "a task with both")
    study = Study(settings)
    rates, near = {}, sorted(settings.learning_rates)[len(settings.learning_rates) // 2]
    for batch in settings.batches:
        rates[batch] = study.chosen_rate(batch, near)
        near = rates[batch] or near
    found = [
        study.line(batch, rates[batch], variant)
        for variant in settings.variants
        for batch in settings.batches
        if rates[batch] is not None
    ]
    lines = [line for line in found if line]
    require(bool(lines), f"--minutes {settings.minutes}", "no time for a single run", "more")
    _report(study, lines)


if __name__ == "__main__":
    main()
