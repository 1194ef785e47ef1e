"""The bundled Korean corpus, tokenizer and base encoder: data only."""
