"""Where each architecture keeps its positions: the transformers side, no maths."""
