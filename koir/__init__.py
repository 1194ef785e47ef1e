"""koir: Korean information retrieval. Encoder and reranker training, evaluated together."""

__version__ = "0.1.0"
