"""Puts this folder's kernels into a transformer, module by module, and takes those for CPUs out again."""

from torch import nn

from koir.kernels import dropout, lookup, products, unpadded


def install(transformer: nn.Module) -> None:
    """Let a transformer of transformers compute its linear layers, dropout, embeddings and attention by our kernels.

    Each one looks at the device and the settings when it runs, and leaves to torch what it is not for.
    """
    unpadded.prepare(transformer)
    products.by_onednn(transformer)
    dropout.by_bits(transformer)
    lookup.by_rows(transformer)


def remove(transformer: nn.Module) -> None:
    """Give each module torch's own forward back; attention stays, which is no module's own."""
    for module in transformer.modules():
        vars(module).pop("forward", None)
