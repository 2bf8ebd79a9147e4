"""Tasks whose answers stand in their context: retrieval, tracing, counting, questions."""
