"""Training runs of a second: a Llama of two layers on a few thousand words."""

import random
from pathlib import Path
from typing import Any

from ropepatch.training.recipe import Recipe, parse_recipe

LENGTH = 32

CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
}

T5_CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 2,
    "n_positions": LENGTH,
}


def write_corpus(path: Path) -> Path:
    """A text file of 4,000 words out of 200."""
    chance = random.Random(0)
    words = [f"{a}{b}" for a in "bcdfgklmnp" for b in "aeioubcdefghijklmnop"]
    path.write_text(" ".join(chance.choice(words) for _ in range(4000)), encoding="utf-8")
    return path


def pretraining_tree(root: Path, **training: Any) -> dict[str, Any]:
    """A recipe that trains from nothing into `root/run`, as nested mappings."""
    corpus = root / "corpus.txt"
    if not corpus.exists():
        write_corpus(corpus)
    return {
        "model": {
            # Dropout, so that a resumed run must also go on with the same random numbers.
            "config": {**CONFIG, "attention_dropout": 0.1},
            "tokenizer": {"vocab_size": 450},
        },
        "data": {"source": str(corpus), "length": LENGTH},
        "training": {
            "max_steps": 6,
            "per_device_batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 1e-2,
            "save_steps": 2,
            "logging_steps": 1,
            # The same numbers on every machine.
            "precision": "fp32",
            **training,
        },
        "evaluation": None,
        "output_dir": str(root / "run"),
    }


def extension_tree(root: Path, base: Path, **lora: Any) -> dict[str, Any]:
    """A recipe that extends `base` four times with an adapter, into `root/run`."""
    tree = pretraining_tree(root)
    return {
        **tree,
        "model": {"path": str(base)},
        "patch": {"method": "yarn", "factor": 4},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1, **lora},
        "data": {**tree["data"], "length": 4 * LENGTH},
    }


def seq2seq_tree(root: Path, **training: Any) -> dict[str, Any]:
    """A recipe that trains a T5 as a prefix language model, into `root/run`."""
    tree = pretraining_tree(root, **training)
    tree["model"]["config"] = T5_CONFIG
    tree["data"] |= {"target_length": LENGTH // 4, "mixture": {"retrieval": 0.0}}
    return tree


def pretraining(root: Path, **training: Any) -> Recipe:
    return parse_recipe(pretraining_tree(root, **training))


def extension(root: Path, base: Path, **lora: Any) -> Recipe:
    return parse_recipe(extension_tree(root, base, **lora))


def with_evaluation(tree: dict[str, Any], root: Path, **evaluation: Any) -> dict[str, Any]:
    """The same recipe, measured on a few windows of other text."""
    held_out = root / "held_out.txt"
    words = (root / "corpus.txt").read_text(encoding="utf-8").split()
    held_out.write_text(" ".join(reversed(words)), encoding="utf-8")
    fast = {"source": str(held_out), "windows": 3, "prompts": 2}
    return {**tree, "evaluation": fast | evaluation}
