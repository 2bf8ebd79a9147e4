"""What runs inside a patched model. Knows tensors and methods, not transformers."""
