"""Write a cross-encoder out of an encoder that was tuned from `demo`: it finds that encoder's words again, untrained.

    .venv/bin/python scripts/write_reranker.py --encoder outputs/RUN --output_dir outputs/written
    bash reranker/scripts/finetune.sh reranker/recipes/korean-small.yaml --model_name_or_path outputs/written

A better start than a new head on the encoder, which first has to learn that equal words matter (docs/base-model.md).
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from koir.demo import matcher
from koir.encoder import load_encoder
from koir.errors import exit_on_user_error
from koir.flags import parse, require


@dataclass
class WrittenArguments:
    """From which encoder, where to."""

    encoder: str = field(default="demo", metadata={"help": "run folder or model folder of an encoder tuned from demo"})
    output_dir: str = field(default="outputs/written", metadata={"help": "a new model folder"})
    seed: int = field(default=1, metadata={"help": "of what the written layers leave free"})


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Load, write, save."""
    (settings,) = parse([WrittenArguments], argv, __doc__, recipes=False)
    folder = Path(settings.output_dir)
    require(0 <= settings.seed < 2**63, "--seed", str(settings.seed), "0 to 9,223,372,036,854,775,807")
    require(not folder.exists(), f"--output_dir {folder}", "something there", "a new folder")
    matcher.written(load_encoder(settings.encoder), settings.encoder, settings.seed).save(folder)
    print(f"model: {folder}\nnext:  bash reranker/scripts/finetune.sh reranker/recipes/korean-small.yaml "
          f"--model_name_or_path {shlex.quote(str(folder))} --train_data FILES --negatives_from rows")  # fmt: skip


if __name__ == "__main__":
    main()
