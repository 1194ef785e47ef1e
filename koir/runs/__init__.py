"""A training run around its step: arguments in, a folder with a model and run.json out."""
