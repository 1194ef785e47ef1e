"""Compiled layers on GPUs: one graph for all layers and lengths, whose replay draws the first pass's dropout."""

from torch import nn

from koir.errors import ModelError
from koir.kernels.install import remove


def compile_layers(transformer: nn.Module) -> None:
    """Let torch.compile fuse what stands between the matrix products of each layer, once for any number of tokens.

    Compiled code with and without gradients need not draw the same dropout masks: GradientCache's `one_code` is needed.
    Raises ModelError for a model whose layers are not where XLM-RoBERTa's and BERT's are.
    """
    layers = getattr(getattr(transformer.base_model, "encoder", None), "layer", None)
    if layers is None:
        raise ModelError("--compile", f"a {transformer.config.model_type} model", "one like XLM-RoBERTa or BERT")
    remove(transformer)  # kernels for CPUs, each module's own, would make every layer a function
    for layer in layers:
        layer.compile(dynamic=True)
