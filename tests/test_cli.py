"""The command line: what it prints, what it refuses, and its exit codes."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from tiny_runs import LENGTH, T5_CONFIG, extension_tree, pretraining, pretraining_tree, seq2seq_tree
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FalconConfig,
    FalconForCausalLM,
    Trainer,
)

from ropepatch.cli import INTERRUPTED, USER_ERROR, main
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(pretraining(tmp_path_factory.mktemp("base"), max_steps=2)).directory


@pytest.fixture(scope="module")
def bloom(tmp_path_factory):
    """Trained to 32 tokens; two heads, whose slopes are 2⁻⁴ and 2⁻⁸."""
    tree = pretraining_tree(tmp_path_factory.mktemp("bloom"), max_steps=1)
    config = {"hidden_size": 32, "n_layer": 1, "n_head": 2, "seq_length": LENGTH}
    tree["model"]["config"] = {"model_type": "bloom", **config}
    return train(parse_recipe(tree)).directory


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """Its config does not say that it was trained to 32 tokens."""
    tree = seq2seq_tree(tmp_path_factory.mktemp("t5"), max_steps=1)
    tree["model"]["config"] = {k: v for k, v in T5_CONFIG.items() if k != "n_positions"}
    return train(parse_recipe(tree)).directory


@pytest.fixture
def recipe(tmp_path):
    """A recipe file and the directory that its run writes to."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(pretraining_tree(tmp_path)), encoding="utf-8")
    return path


def refused(capsys, *arguments):
    """The one line that a user's mistake is answered with."""
    assert main([str(argument) for argument in arguments]) == USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("ropepatch: error: ")
    return said


def test_help_answers_at_once():
    """Without the imports that take seconds."""
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
    run = "from ropepatch.cli import main; main(['--help'])"
    out = subprocess.check_output([sys.executable, "-c", tell + run], text=True)
    for command in ("methods", "inspect", "patch", "train", "eval", "demo"):
        assert command in out
    imported = set(out.splitlines()[-1].split())
    assert "ropepatch.cli" in imported
    assert imported.isdisjoint({"torch", "transformers", "numpy", "rich", "pydantic", "matplotlib"})


def test_methods_lists_every_method(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert "yarn" in said
    assert "beta_fast" in said
    assert "native_rope_type" not in said


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("linear*", ["scales", "linear", "rotary, alibi, relative, absolute"]),
        ("dynamic_linear", ["by length", "–", "rotary, alibi"]),
        ("log", ["scales", "–", "relative"]),
        ("yarn", ["scales", "yarn", "rotary"]),
        ("alibi*", ["replaces", "–", "rotary, relative, absolute"]),
        ("xpos*", ["replaces", "–", "rotary"]),
    ],
)
def test_methods_says_what_each_does_to_which_mechanism(capsys, monkeypatch, method, row):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods"]) == 0
    rows = [re.split(r"\s{2,}", line.rstrip()) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["method", "how", "transformers", "what", "options"]
    assert [found[1:4] for found in rows if found[0] == method] == [row]


def test_methods_cuts_no_name_short_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 80


def test_inspect_shows_what_is_there(base, capsys):
    assert main(["inspect", str(base)]) == 0
    said = capsys.readouterr().out
    assert "LlamaForCausalLM (llama)" in said
    assert "rotary, default, base 10,000" in said
    assert "patch       none" in said


def test_inspect_shows_slopes(bloom, capsys):
    assert main(["inspect", str(bloom)]) == 0
    said = capsys.readouterr().out
    assert "positions   ALiBi, 2 heads, slopes 0.0625 to 0.00391\n" in said
    assert "tokens      32\n" in said
    assert "methods     dynamic_linear, linear, ntk\n" in said


def test_inspect_shows_buckets_and_that_a_length_is_not_known(t5, capsys):
    assert main(["inspect", str(t5)]) == 0
    said = capsys.readouterr().out
    buckets = "encoder: 16 + 16 buckets up to distance 128; decoder: 32 buckets up to distance 128"
    assert f"positions relative, {buckets}" in " ".join(said.split())
    assert "tokens      the config does not say\n" in said
    assert "methods     linear, log\n" in said
    assert "replaced by alibi, kerple_log, kerple_power, learned, nope, sandwich\n" in said


def test_patch_scales_a_part_from_a_length_that_is_given(t5, tmp_path, capsys):
    arguments = ["--method", "log", "--part", "encoder", "--original-max-position-embeddings", "32"]
    assert main(["patch", str(t5), str(tmp_path / "out"), *arguments]) == 0
    assert "log (encoder) ×4: 32 → 128 tokens" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "tokens      128\n" in said
    assert "patch       log, factor 4, from 32 tokens, encoder only\n" in said


def test_patch_and_inspect_say_where_stock_is_wrong(base, tmp_path, capsys):
    config = FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, alibi=True)
    FalconForCausalLM(config).save_pretrained(tmp_path / "falcon")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "falcon")
    patched = str(tmp_path / "patched")
    for arguments in (
        ["patch", str(tmp_path / "falcon"), patched, "--method", "linear"],
        ["inspect", patched],
    ):
        assert main(arguments) == 0
        assert "stock Falcon adds ALiBi twice" in capsys.readouterr().out


def test_eval_takes_the_trained_length_where_the_config_does_not_say_it(t5, tmp_path, capsys):
    corpus = t5.parent.parent / "corpus.txt"
    measured = ["--windows", "3", "--lengths", "96", "--data", str(corpus)]
    arguments = ["eval", str(t5), *measured, "--output", str(tmp_path)]
    assert "give --original-max-position-embeddings" in refused(capsys, *arguments)
    assert main([*arguments, "--original-max-position-embeddings", "32"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["trained_length"] == LENGTH


def test_patch_saves_a_copy_that_inspect_knows(base, tmp_path, capsys):
    arguments = ["--method", "yarn", "--factor", "4", "--set", "beta_fast=16"]
    assert main(["patch", str(base), str(tmp_path / "out"), *arguments]) == 0
    assert "yarn ×4: 32 → 128 tokens" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 128
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "yarn, factor 4, from 32 tokens" in capsys.readouterr().out


def test_train_runs_a_recipe_with_overrides(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "training.max_steps=3"]) == 0
    assert "3 steps, last loss" in capsys.readouterr().out
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_train_says_that_a_run_is_finished(recipe, capsys):
    main(["train", str(recipe)])
    assert main(["train", str(recipe)]) == 0
    assert "this recipe was finished before" in capsys.readouterr().out


def test_eval_measures_an_adapter(base, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(extension_tree(tmp_path, base)), encoding="utf-8")
    assert main(["train", str(recipe), "training.max_steps=1"]) == 0
    measured = ["--lengths", "80,128", "--windows", "4", "--prompts", "2"]
    data = ["--data", str(tmp_path / "corpus.txt"), "--output", str(tmp_path / "eval")]
    assert main(["eval", str(tmp_path / "run" / "final"), *measured, *data]) == 0
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["trained_length"] == 32
    assert report["stages"][0]["configuration"]["patch"]["method"] == "yarn"
    assert "Loss of the same last 64 tokens" in capsys.readouterr().out


def test_eval_measures_an_encoder_decoder_model_patched_and_not(tmp_path, capsys):
    base = train(parse_recipe(seq2seq_tree(tmp_path, max_steps=2))).directory
    assert (
        main(["patch", str(base), str(tmp_path / "log"), "--method", "log", "--factor", "4"]) == 0
    )
    measured = ["--lengths", "96,128", "--windows", "3"]
    data = ["--data", str(tmp_path / "corpus.txt"), "--output", str(tmp_path / "eval")]
    for model, method in ((base, None), (tmp_path / "log", "log")):
        assert main(["eval", str(model), *measured, *data]) == 0
        (stage,) = json.loads((tmp_path / "eval" / "report.json").read_text())["stages"]
        assert (stage["configuration"]["patch"] or {}).get("method") == method
        assert stage["configuration"]["not_asked"] == {}
        assert stage["configuration"]["trained_length"] == LENGTH


def test_mistakes_in_a_recipe_are_listed_without_a_traceback(recipe, capsys):
    said = refused(capsys, "train", recipe, "training.max_stps=3", "lora.r=x")
    assert "unknown key training.max_stps; did you mean max_steps?" in said
    assert "lora.r must be a valid integer" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "{tmp}/none.yaml"], "cannot read the recipe"),
        (["inspect", "{tmp}/none"], "there is no checkpoint at"),
        (["inspect", "{tmp}/recipe.yaml"], "is a file"),
        (["inspect", "{tmp}"], "has no config.json"),
        (["eval", "{tmp}/none"], "there is no checkpoint at"),
        (["patch", "{tmp}/none", "{tmp}/out"], "there is no checkpoint at"),
        (["patch", "{base}", "{tmp}/out", "--method", "yran"], "did you mean 'yarn'?"),
        (["patch", "{base}", "{tmp}/out", "--factor", "0.5"], "factor"),
        (["patch", "{base}", "{tmp}/out", "--part", "encoder"], "part does not apply to Llama"),
        (["patch", "{bloom}", "{tmp}/out"], "methods that rescale: dynamic_linear, linear, ntk; "),
        (["patch", "{t5}", "{tmp}/out", "--method", "log"], "give original_max_position_embed"),
        (["patch", "{base}", "{tmp}/out", "--set", "beta_fast"], "--set takes OPTION=VALUE"),
        (["patch", "{base}", "{tmp}/out", "--set", "a=["], "is not a YAML value"),
        (["patch", "{base}", "{tmp}/out", "--set", "a=b=c"], "'a'"),
        (["patch", "{base}", "{base}/../final"], "name another directory"),
        (["patch", "{base}", "{tmp}/recipe.yaml/out"], "could not save"),
        (["train", "{tmp}/recipe.yaml", "data.source={tmp}/none"], "check the path"),
        (["train", "{tmp}/recipe.yaml", "output_dir={tmp}/recipe.yaml/run"], "cannot write to"),
    ],
)
def test_a_users_mistake_is_one_line(
    base, bloom, t5, recipe, tmp_path, capsys, arguments, expected
):
    paths = {"tmp": tmp_path, "base": base, "bloom": bloom, "t5": t5}
    filled = [argument.format(**paths) for argument in arguments]
    said = refused(capsys, *filled)
    assert expected in said
    assert len(said.splitlines()) == 1


def test_patch_replaces_the_scaling_of_a_checkpoint_when_told_to(base, tmp_path, capsys):
    shutil.copytree(base, tmp_path / "scaled")
    path = tmp_path / "scaled" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 2.0}
    path.write_text(json.dumps(config))
    arguments = ["patch", str(tmp_path / "scaled"), str(tmp_path / "out"), "--method", "yarn"]
    arguments += ["--original-max-position-embeddings", "32"]
    assert "replace" in refused(capsys, *arguments)
    assert main([*arguments, "--replace"]) == 0


def test_ctrl_c_loses_nothing(recipe, tmp_path, capsys, monkeypatch):
    step = Trainer.training_step

    def press(self, *arguments, **options):
        if self.state.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments, **options)

    with monkeypatch.context() as change:
        change.setattr(Trainer, "training_step", press)
        assert main(["train", str(recipe)]) == INTERRUPTED
    said = capsys.readouterr().err
    assert "run the same recipe again to go on" in said
    assert "Traceback" not in said

    assert main(["train", str(recipe)]) == 0
    assert main(["train", str(recipe), f"output_dir={tmp_path / 'undisturbed'}"]) == 0
    resumed = load_file(tmp_path / "run" / "final" / "model.safetensors")
    undisturbed = load_file(tmp_path / "undisturbed" / "final" / "model.safetensors")
    assert all((resumed[name] == undisturbed[name]).all() for name in undisturbed)
