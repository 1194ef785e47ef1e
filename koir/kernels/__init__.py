"""How a transformer is computed on the chip at hand: CPUs with and without bfloat16, GPUs."""
