"""Tasks, metrics, significance and results of retrieval evaluation."""
