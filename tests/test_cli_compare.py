"""`ropepatch compare` and `eval`: what they print and write, go on with, and refuse at once."""

import json

import numpy as np
import pytest
import yaml
from filelock import FileLock
from test_cli import refused
from tiny_runs import LENGTH, extension_tree, pretraining
from tiny_tokenizer import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from ropepatch.cli import main
from ropepatch.training.runner import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(pretraining(tmp_path_factory.mktemp("base"), max_steps=2)).directory


@pytest.fixture
def corpus(base):
    return base.parent.parent / "corpus.txt"


@pytest.fixture
def measured(corpus, tmp_path):
    few = ["--lengths", "80,128", "--windows", "6", "--prompts", "4"]
    return [*few, "--data", str(corpus), "--output", str(tmp_path / "out")]


def refused_now(capsys, *arguments):
    """What a mistake is answered with, whatever was told before it."""
    capsys.readouterr()
    return refused(capsys, *arguments)


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def results(tmp_path):
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("date", "configs")}


def test_methods_are_compared_and_everything_is_written(base, measured, tmp_path, capsys):
    run("compare", base, "--methods", "yarn, pi", "--factors", "2,4", *measured)
    said = capsys.readouterr().out
    for label in ("yarn ×2", "yarn ×4", "linear ×2", "linear ×4"):
        assert f"{label}: " in said
    assert any(word in said for word in ("no evidence", "regressed", "improved"))
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"manifest.json", "results.json", "report.html", "samples_kv.jsonl", "losses"} <= names
    assert len(json.loads((out / "results.json").read_text())["verdicts"]) == 4
    # 5 models, 2 lengths, 4 prompts.
    assert len((out / "samples_kv.jsonl").read_text().splitlines()) == 40


def test_a_second_run_gives_the_same_and_may_add_a_candidate(base, measured, tmp_path):
    run("compare", base, "--methods", "yarn", *measured)
    first = results(tmp_path)
    run("compare", base, "--methods", "yarn", *measured)
    assert results(tmp_path) == first
    run("compare", base, "--methods", "yarn,ntk", *measured)
    more = results(tmp_path)
    assert more["verdicts"][0] == first["verdicts"][0]
    assert [verdict["candidate"] for verdict in more["verdicts"]] == ["yarn ×4", "ntk ×4"]


def test_adapters_and_checkpoints_are_compared_to_their_base(base, measured, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(extension_tree(tmp_path, base)), encoding="utf-8")
    run("train", recipe, "training.max_steps=1", f"output_dir={tmp_path}/tuned")
    run("patch", base, tmp_path / "yarned", "--method", "yarn")
    adapter = tmp_path / "tuned" / "final"
    run("compare", base, tmp_path / "yarned", adapter, *measured)
    labels = [verdict["candidate"] for verdict in results(tmp_path)["verdicts"]]
    assert labels == ["yarned", "tuned/final"]
    (adapter / "ropepatch.json").unlink()
    said = refused_now(capsys, "compare", base, adapter, *measured)
    assert "has no ropepatch.json, so the patch that the adapter was trained on is unknown" in said


def test_models_are_read_behind_options_too(base, measured, tmp_path):
    run("patch", base, tmp_path / "yarned")
    run("compare", base, *measured, tmp_path / "yarned")
    assert [each["candidate"] for each in results(tmp_path)["verdicts"]] == ["yarned"]


def test_lengths_are_separated_by_commas(base, measured, capsys):
    said = refused(capsys, "eval", base, *measured, "--lengths", "80 128")
    assert "--lengths takes tokens such as 512,1024; found '80 128'" in said


def test_eval_takes_one_model(base, measured, capsys):
    with pytest.raises(SystemExit):
        main(["eval", str(base), *measured, str(base)])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_another_protocol_in_the_same_directory_is_refused(base, measured, capsys):
    run("eval", base, *measured)
    said = refused_now(capsys, "eval", base, *measured, "--seed", "1")
    assert "holds results of another measurement (seed 0, now 1" in said
    assert "name another --output" in said


def test_a_changed_checkpoint_in_the_same_place_is_refused(base, measured, tmp_path, capsys):
    run("patch", base, tmp_path / "patched", "--factor", "2")
    run("eval", tmp_path / "patched", *measured)
    run("patch", base, tmp_path / "patched", "--factor", "4")
    assert "model patched" in refused_now(capsys, "eval", tmp_path / "patched", *measured)


def test_a_named_protocol_is_measured_beside_the_fixed_targets(base, measured, tmp_path, capsys):
    run("eval", base, "--tasks", "ppl,kv", "--protocol", "last-s", "--stride", "16", *measured)
    assert "Perplexity of run/final by last-s" in capsys.readouterr().out
    found = results(tmp_path)["results"]
    losses = np.concatenate(
        [np.load(path) for path in sorted((tmp_path / "out").glob("losses/*/last-s-128/*.npy"))]
    )
    assert found["ppl_last-s"]["128,none"] == pytest.approx(np.exp(losses.mean(dtype=np.float64)))


def test_perplexities_of_candidates_are_paired_with_their_base(base, measured, tmp_path, capsys):
    run("compare", base, "--methods", "yarn", "--tasks", "ppl,longppl,kv", *measured)
    said = capsys.readouterr().out
    assert "Perplexity of yarn ×4 by yarn-truncate" in said
    assert "Perplexity of yarn ×4 by long-ppl" in said
    assert "minus" in said
    before, after = results(tmp_path)["perplexities"].values()
    assert [each["digest"] for each in before] == [each["digest"] for each in after]
    assert [each["length"] for each in after if each["protocol"] == "long-ppl"] == [80, 128]


def test_an_interval_is_reached_by_counts_that_are_fixed_once(base, measured, tmp_path):
    run("eval", base, *measured, "--ci", "0.2")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())["measured"]
    assert manifest["sampling"] == {"ci": 0.2, "budget": None}
    # At most 0.25 · 1.96² / 0.2², of a pilot of 16.
    assert 8 <= manifest["prompts"] <= 24
    run("eval", base, *measured, "--ci", "0.2")


def test_a_budget_counts_every_candidate(base, measured, tmp_path):
    asked = ["--methods", "yarn", "--tasks", "kv,ppl", "--budget", "6s"]
    run("compare", base, *asked, *measured)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())["measured"]
    assert manifest["sampling"] == {"ci": None, "budget": "6s"}
    assert manifest["windows"] >= 8


def test_lengths_that_no_document_holds_are_missing(base, measured, tmp_path, capsys):
    run("eval", base, *measured, "--lengths", "2000000,80,1000000")
    said = capsys.readouterr().out
    assert "missing: no document of" in said
    assert "has 1000000 or 2000000 tokens" in said
    assert set(results(tmp_path)["results"]["kv"]) == {"alias", "80,none", "80_stderr,none"}


def test_tasks_that_do_not_fit_are_said(base, measured, capsys):
    run("eval", base, *measured, "--tasks", "needle,cwe")
    said = capsys.readouterr().out
    assert "not asked: needle in 80 tokens: needle does not fit into 80 tokens" in said
    assert "not asked: cwe: fits into none of the lengths; cwe does not fit into 128" in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "yarn,log"], "nothing was measured: 'log' is not for LlamaForCausalLM"),
        (["--methods", "yran"], "did you mean 'yarn'"),
        (["--methods", "yarn", "--factors", "two"], "--factors takes numbers such as 2,4,8"),
        (["--methods", "yarn", "--factors", "0.5"], "factor"),
        (["--methods", "yarn,yarn"], "names of their own"),
        (["{tmp}/none"], "there is no checkpoint at"),
        (["--tasks", "kx"], "there is no task 'kx'"),
        (["--tasks", "pplx"], "did you mean 'ppl'?; tasks: ppl, longppl, "),
        (["--protocol", "last-s"], "are of the task ppl"),
        (["--tasks", "ppl", "--protocol", "last-s"], "use a stride below 80"),
        (["--tasks", "qa_1"], "qa_1"),
        (["--questions", "dev.json"], "--questions takes TASK=FILE"),
        (["--tasks", "qa_1", "--questions", "qa_1={tmp}/none.json"], "none.json cannot be read"),
        (["--questions", "qa_3={tmp}/none.json"], "no task 'qa_3' reads questions; qa_1 and qa_2"),
        (["--budget", "soon"], "write 90s, 10m or 1.5h"),
        (["--ci", "2"], "must lie between 0 and 1"),
        (["compare"], "there is nothing to compare"),
        (["compare", "--factors", "2"], "--factors are of --methods"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(
    base, measured, tmp_path, capsys, arguments, expected
):
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    if filled[0] == "compare":
        command, *filled = filled
    else:
        command = "compare" if "--methods" in filled or "none" in filled[0] else "eval"
    said = refused(capsys, command, base, *filled, *measured)
    assert expected in said
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_candidate_with_another_tokenizer_is_refused(base, measured, tmp_path, capsys):
    run("patch", base, tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    said = refused_now(capsys, "compare", base, tmp_path / "other", *measured)
    assert "has another tokenizer" in said
    assert "bits per byte" in said


def test_a_table_of_positions_is_not_read_beyond_its_end(base, measured, tmp_path, capsys):
    from ropepatch.checkpoint.opening import open_tokenizer

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 2 * LENGTH}
    tokenizer = open_tokenizer(str(base))
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        tmp_path / "gpt2"
    )
    tokenizer.save_pretrained(tmp_path / "gpt2")
    said = refused(capsys, "eval", tmp_path / "gpt2", *measured)
    assert "has positions for 64 tokens, but 128 are asked for" in said


def test_a_directory_in_which_another_process_measures_is_refused(base, measured, tmp_path, capsys):
    (tmp_path / "out").mkdir(exist_ok=True)
    with FileLock(tmp_path / "out" / ".lock"):
        said = refused(capsys, "eval", base, *measured)
    assert "another process measures in" in said
    assert not (tmp_path / "out" / "manifest.json").exists()
