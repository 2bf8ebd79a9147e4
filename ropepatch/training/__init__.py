"""Recipes and the runner that trains them on the Hugging Face Trainer."""
