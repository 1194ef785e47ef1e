"""Make the bundled encoder and reranker again, from nothing, out of open Korean corpora (docs/base-model.md).

    .venv/bin/python scripts/make_base.py --data_dir DATA --output_dir outputs/base

DATA/raw and DATA/beir hold the corpora and tasks that docs/base-model.md lists. Steps: rows; a bag of pieces, learned
in a minute and written as a transformer; weights in half precision; the same pieces written as a cross-encoder. With
--contrastive, v1.1 trains the transformer on (v1.1/recipes/base.yaml) before that. Rows, bag and contrastive stage
that are there already are not made again. OUTPUT/base and OUTPUT/reranker are what koir/demo holds under these names.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from koir.flags import parse, require  # noqa: E402 (first: koir says what is not installed)

# isort: split
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, AutoTokenizer  # noqa: E402

from koir.corpus.shards import read_rows, write_rows  # noqa: E402
from koir.demo import bag, matcher, rows  # noqa: E402
from koir.encoder import Encoder, load_encoder  # noqa: E402
from koir.errors import exit_on_user_error  # noqa: E402
from koir.loading import share_weights  # noqa: E402
from koir.manifest import DEMO, origin, write_json, written_aside  # noqa: E402
from koir.tokens import DEFAULT_PROMPTS  # noqa: E402

SPECIAL = 5  # the first pieces of the vocabulary are special tokens


@dataclass
class BaseArguments:
    """From where to where."""

    data_dir: str | None = field(default=None, metadata={"help": "folder with raw/ and beir/; must be given"})
    output_dir: str = field(default="outputs/base", metadata={"help": "a new folder, or one to go on with"})
    bag_steps: int = field(default=100, metadata={"help": "updates of the bag of pieces"})
    bag_batch: int = field(default=2048, metadata={"help": "rows an update of it"})
    bag_learning_rate: float = field(default=4e-3, metadata={"help": "its peak learning rate"})
    bag_temperature: float = field(default=0.08, metadata={"help": "its temperature"})
    bag_dimensions: list[int] = field(
        default_factory=lambda: [128, 64], metadata={"help": "so many leading dimensions are trained to work alone"}
    )
    contrastive: bool = field(default=False, metadata={"help": "train the transformer on with v1.1"})
    seed: int = field(default=1, metadata={"help": "of rows, first vectors and order"})


@exit_on_user_error
def main(argv: list[str] | None = None) -> Path:
    """The steps; returns the folder of the encoder."""
    (settings,) = parse([BaseArguments], argv, __doc__, recipes=False)
    require(settings.data_dir is not None, "--data_dir", "nothing", "a folder with raw/ and beir/")
    data, out = Path(settings.data_dir), Path(settings.output_dir)
    for part in ("raw", "beir"):
        require((data / part).is_dir(), f"--data_dir {data}", f"no folder {part}", "a folder with raw/ and beir/")
    file, start, run = out / "rows.jsonl.gz", out / "bag", out / "contrastive"
    written = out / "matcher"
    if not file.is_file():
        made = rows.all_rows(data / "raw", data / "beir", settings.seed)
        write_rows(file, made)
        print(f"{file}: {len(made):,} rows")
    if not start.is_dir():
        _bag(list(read_rows(file)), start, settings)
    if settings.contrastive and not (run / "run.json").is_file():
        command = [sys.executable, ROOT / "v1.1/train.py", ROOT / "v1.1/recipes/base.yaml"]
        command += ["--model_name_or_path", start, "--train_data", file, "--output_dir", run]
        if any((run / "checkpoints").glob("checkpoint-*/trainer_state.json")):
            command += ["--resume_from_checkpoint", "last"]
        if status := subprocess.run([str(word) for word in command]).returncode:
            sys.exit(status)  # it has said why
    model, reranker = out / "base", out / "reranker"
    _in_half_precision(run / "model" if settings.contrastive else start, model)
    matcher.written(load_encoder(str(model)), str(model), settings.seed).save(written)
    _in_half_precision(written, reranker)
    write_json(out / "run.json", {"kind": "base", "settings": vars(settings)} | origin())
    print(f"models: {model} {reranker}")
    print(f"next:   .venv/bin/python evaluate.py --first_stage bm25 dense:{model} --reranker none {reranker}")
    return model


def _bag(made: list[dict], folder: Path, settings: BaseArguments) -> None:
    """The bag of pieces, as a model folder."""
    base = DEMO / "base"
    config, tokenizer = AutoConfig.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    texts = list(dict.fromkeys(text for item in made for text in (item["query"], item["document"])))
    vectors = bag.first_vectors(tokenizer, texts, config.hidden_size - bag.SLACK, settings.seed)
    vectors = bag.train(
        bag.turned(vectors, tokenizer, texts[::4]),
        tokenizer,
        made,
        settings.bag_steps,
        settings.bag_batch,
        settings.bag_learning_rate,
        settings.bag_temperature,
        settings.seed,
        settings.bag_dimensions,
    )
    prompts = tokenizer(list(DEFAULT_PROMPTS.values()))["input_ids"]
    silent = sorted(set(range(SPECIAL)).union(*prompts))
    transformer = bag.as_transformer(vectors, config, silent, settings.seed)
    Encoder(transformer, tokenizer, "mean", 512, DEFAULT_PROMPTS).save(folder)


def _in_half_precision(model: Path, folder: Path) -> None:
    """Copy a model folder with its weights in float16; config.json goes on to say float32, which loading follows."""
    with written_aside(folder) as aside:
        shutil.copytree(model, aside)
        weights = load_file(model / "model.safetensors")
        halves = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
        save_file(halves, aside / "model.safetensors", metadata={"format": "pt"})
        share_weights(aside)


if __name__ == "__main__":
    main()
