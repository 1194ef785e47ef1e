"""The bundled Korean corpus, tokenizer, base encoder and reranker, and how the two models are made."""
