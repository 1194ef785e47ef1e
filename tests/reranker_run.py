"""One step of reranker/train.py, in several processes: python reranker_run.py OUT.pt '{"loss": "kl", ...}'."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from one_step import trainer_module
from test_reranker_training import step

if __name__ == "__main__":
    out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    found, trainer = step(trainer_module("reranker"), settings.pop("rows"), out.parent, **settings)
    facts, states = trainer.facts(), [None, None]
    torch.distributed.all_gather_object(states, torch.get_rng_state())
    if trainer.args.process_index == 0:
        torch.save({"gradients": found, "facts": facts, "states": states}, out)
