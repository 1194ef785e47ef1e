"""A server that answers in the shapes of the rerank and embeddings APIs that clients already speak."""
