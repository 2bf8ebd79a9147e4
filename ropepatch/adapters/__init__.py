"""Where each architecture keeps its positions, and how they get there. The transformers side; no maths."""
