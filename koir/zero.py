"""DeepSpeed at the door: a configuration that cannot be meant is refused, and a process alone needs no launcher."""

import json
import os
from pathlib import Path

from koir.errors import nearest_beside
from koir.flags import require

SHIPPED = "v1.1/recipes/zero1.json, zero2.json, zero3.json, or a configuration like them"
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def require_configuration(given: str | dict) -> None:
    """Raise FlagError where --deepspeed is neither JSON nor a file of it, or without ZeRO, or leaves the batch out."""
    place, config = _place(given), given
    if not isinstance(given, dict):
        written, file = given.startswith("{"), Path(given)
        require(written or file.is_file(), place, "no such file", SHIPPED + nearest_beside(file))
        try:
            config = json.loads(given if written else file.read_text(encoding="utf-8"))
        except ValueError as error:  # UnicodeDecodeError is one
            require(False, place, f"broken JSON ({error})", SHIPPED)
    require(isinstance(config, dict), place, type(config).__name__, SHIPPED)
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    require(stage in (1, 2, 3), f"{place}, zero_optimization.stage", str(stage), "1, 2 or 3; no ZeRO: no --deepspeed")
    gather = "stage3_gather_16bit_weights_on_model_save"
    whole = stage < 3 or zero.get(gather) is True
    require(whole, f"{place}, zero_optimization.{gather}", str(zero.get(gather)), "true: else no weights are saved")
    for key in BATCH:
        require(config.get(key) is not None, f"{place}, {key}", "nothing", '"auto"')


def require_agreement(given: str | dict, mismatches: list[str]) -> None:
    """Raise FlagError where numbers of a configuration contradict flags. mismatches: as transformers says them."""
    lines = [line.removeprefix("- ds ").replace(" vs hf ", " against the flags' ") for line in mismatches]
    require(not lines, _place(given), "; ".join(lines), '"auto" there')


def _place(given: str | dict) -> str:
    return "--deepspeed" if isinstance(given, dict) or given.startswith("{") else f"--deepspeed {given}"


def be_the_only_process() -> None:
    """What torchrun would tell the only process, unless one told it already; DeepSpeed would ask MPI."""
    if "LOCAL_RANK" not in os.environ:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 0}  # 0: a free one
        os.environ.update({name: str(value) for name, value in alone.items()} | {"MASTER_ADDR": "127.0.0.1"})
