"""`ropepatch lm-eval`: EleutherAI's lm-evaluation-harness on a patched model, without truncation."""

import argparse
import json
import sys

from ropepatch.arguments import parse_options
from ropepatch.errors import ConfigError
from ropepatch.extras import require_extra


def run(options: argparse.Namespace) -> None:
    """Run the harness as its own command would, with a model that refuses what it would truncate.

    Raises MissingExtraError where lm_eval is not installed, DataError for a request that is too long.
    """
    require_extra("lm-eval", "ropepatch lm-eval")
    import lm_eval.__main__

    from ropepatch import lm_eval_model

    command = ["--model", lm_eval_model.NAME, "--model_args", json.dumps(_model_args(options))]
    # lm_eval has no other entry point that takes all of its options.
    sys.argv = ["lm_eval", "run", *command, *options.harness]
    lm_eval.__main__.cli_evaluate()


def _model_args(options: argparse.Namespace) -> dict[str, object]:
    """What the harness writes into its results, and hands to the model."""
    patch = {
        "method": options.method,
        "factor": options.factor,
        "target_length": options.target_length,
        "method_options": parse_options(options.set) or None,
    }
    given = {name: value for name, value in patch.items() if value is not None}
    if given and options.method is None:
        raise ConfigError(f"{', '.join(given)} without a method; add --method, such as yarn")
    return {"pretrained": options.model, **given}
