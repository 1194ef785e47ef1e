"""LoRA (Hu et al. 2021, arXiv:2106.09685): small trained matrices beside frozen weights, merged in saved models."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from koir.encoder import Encoder
from koir.errors import ModelError, RunError, nearest

FILE = "lora.safetensors"  # of a checkpoint: the trained matrices alone, since its model folder is merged
SKIPPED = "pooler"  # nothing reads its output


def add_adapters(encoder: Encoder, rank: int, alpha: float, targets: Sequence[str] = ()) -> None:
    """Freeze the encoder and put trained matrices of so small a rank beside its linear layers, in place.

    alpha: the update is scaled by alpha / rank. targets: names of the layers, as the end of their path; default all
    linear ones. Raises ModelError where no layer has such a name.
    """
    linear = {
        name.rpartition(".")[2]
        for name, module in encoder.transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and SKIPPED not in name
    }
    for target in targets:
        if target not in linear:
            there = ", ".join(sorted(linear)) + nearest(target, linear)
            raise ModelError("--lora_targets", f"{target}, which is no linear layer of this model", f"some of {there}")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=sorted(targets or linear), exclude_modules=rf".*{SKIPPED}.*"
    )
    inject_adapter_in_model(config, encoder.transformer)


def has_adapters(encoder: Encoder) -> bool:
    """Whether `add_adapters` was here."""
    return any(isinstance(module, LoraLayer) for module in encoder.modules())


def merged(encoder: Encoder) -> dict[str, torch.Tensor]:
    """The encoder's weights under the names they had before, W + alpha / rank * B @ A where matrices were added."""
    weights = {}
    for name, module in encoder.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.active_adapters
            weights[f"{name}.weight"] = module.base_layer.weight.detach() + module.get_delta_weight(adapter).detach()
    rest = {name.replace(".base_layer.", "."): tensor for name, tensor in encoder.state_dict().items()}
    return {name: weights.get(name, tensor) for name, tensor in rest.items() if ".lora_" not in name}


def save_adapters(encoder: Encoder, folder: Path) -> None:
    """Write the trained matrices beside a checkpoint's merged model, to resume from."""
    save_file({name: tensor.contiguous() for name, tensor in _matrices(encoder).items()}, folder / FILE)


def load_adapters(encoder: Encoder, folder: Path) -> None:
    """Put a checkpoint's matrices back. Raises RunError unless they are of the same rank and layers."""
    if not (folder / FILE).is_file():
        raise RunError(f"--resume_from_checkpoint {folder}", "a run without --lora_rank", "the flags it began with")
    saved, ours = load_file(folder / FILE), _matrices(encoder)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in ours.items()}:
        raise RunError(f"--resume_from_checkpoint {folder}", "other LoRA ranks or layers", "the flags it began with")
    encoder.load_state_dict(saved, strict=False)


def _matrices(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in encoder.state_dict().items() if ".lora_" in name}
