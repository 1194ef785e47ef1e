"""Tuned weights averaged with those they started from (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from koir.flags import require


@dataclass
class WeightArguments:
    """Which weights are saved."""

    tuned_share: float = field(
        default=1.0,
        metadata={
            "help": "of the saved weights; the rest is the start's, so that what it knew is not forgotten (WiSE-FT); "
            "scores while training are of the tuned weights alone"
        },
    )

    def check(self) -> None:
        """Raise FlagError for a share that leaves nothing of the training."""
        share = self.tuned_share
        require(0 < share <= 1, "--tuned_share", str(share), "above 0, at most 1 (0.5 is a good first try)")


def average(start: Callable[[], nn.Module], saved: Callable[[str], nn.Module], share: float, folder: Path) -> None:
    """Move the weights that a run has saved in `folder` back towards its start's, in place.

    start: loads what training started from. saved: loads a model folder. share: of the tuned weights; at 1 nothing
    is done.
    """
    if share == 1:
        return
    tuned = saved(str(folder))
    before, weights = start().state_dict(), tuned.state_dict()
    mixed = {name: before[name].lerp(tensor, share) for name, tensor in weights.items() if tensor.is_floating_point()}
    tuned.load_state_dict(weights | mixed)
    tuned.save(folder)


def card_line(share: float) -> str:
    """What a model folder's README says of it; empty where all weights are tuned."""
    return f"- weights: {share:.0%} tuned, {1 - share:.0%} the base's\n" if share < 1 else ""
