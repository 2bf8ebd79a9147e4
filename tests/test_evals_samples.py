"""What a killed run keeps, and what is refused as not its own."""

import json
import signal

import numpy as np
import pytest
from killed_evaluation import Batches, exit_code_of_killed, run

from ropepatch.errors import CheckpointError, ConfigError, DataError
from ropepatch.evals.answers import Answer
from ropepatch.evals.samples import Samples, SampleStore, file_name, read_answers

ANSWER = Answer("kv", 64, 0, "forced_choice", "hash", "4", "7", 1.0, 0.1 + 0.2, None)


def store(directory, **changes):
    return SampleStore(directory, {"protocol": "one", "models": {"a": "x"}, **changes})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    batches = Batches()
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("whole"), batches, patch.setattr), batches.count


# Two batches tell whether one pass is exact; then come 3 of positions, 3 of targets, 6 of prompts.
@pytest.mark.parametrize("killed_at", [5, 12])
def test_a_killed_run_goes_on_without_measuring_finished_batches_again(
    undisturbed, tmp_path, monkeypatch, killed_at
):
    whole, count = undisturbed
    assert exit_code_of_killed(tmp_path, killed_at) == -signal.SIGKILL
    rest = Batches()
    resumed = run(tmp_path, rest, monkeypatch.setattr)
    # The trial is repeated, and the batch that it was killed in.
    assert rest.count == count - (killed_at - 1) + 2
    for length in whole.lengths:
        np.testing.assert_array_equal(resumed.target_losses[length], whole.target_losses[length])
        ours, theirs = resumed.tasks["kv"][length], whole.tasks["kv"][length]
        np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(resumed.position_losses, whole.position_losses)
    lines = (tmp_path / "samples_kv.jsonl").read_text().splitlines()
    keys = [(row["length"], row["doc_id"]) for row in map(json.loads, lines)]
    assert len(keys) == len(set(keys)) == 24


def test_a_finished_run_asks_the_model_for_nothing_but_the_trial(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        run(tmp_path, Batches(), patch.setattr)
    again = Batches()
    run(tmp_path, again, monkeypatch.setattr)
    assert again.count == 2


def test_an_answer_comes_back_as_it_was(tmp_path):
    store(tmp_path).candidate("a").add([ANSWER])
    assert store(tmp_path).candidate("a").answers("kv", 64) == [ANSWER]
    assert store(tmp_path).candidate("b").answers("kv", 64) == []
    row = json.loads((tmp_path / "samples_kv.jsonl").read_text())
    assert row["doc_id"] == 0
    assert row["resps"] == [["7"]]


def test_a_torn_last_line_is_cut_off(tmp_path):
    store(tmp_path).candidate("a").add([ANSWER])
    path = tmp_path / "samples_kv.jsonl"
    with path.open("a") as file:
        file.write('{"candidate": "a", "ta')
    assert store(tmp_path).candidate("a").answers("kv", 64) == [ANSWER]
    assert path.read_text().count("\n") == len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "line",
    ["", "{", "[1]", '{"candidate": "a"}', '{"score": 1}', "\x00\x00"],
)
def test_any_other_damaged_line_is_named(tmp_path, line):
    store(tmp_path).candidate("a").add([ANSWER])
    path = tmp_path / "samples_kv.jsonl"
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(DataError, match=r"samples_kv\.jsonl, line 1, is no answer"):
        store(tmp_path)


def test_a_score_that_cannot_be_one_is_named(tmp_path):
    path = tmp_path / "samples_kv.jsonl"
    store(tmp_path).candidate("a").add([ANSWER])
    path.write_text(path.read_text().replace('"score": 1.0', '"score": 17'))
    with pytest.raises(DataError, match="the score is 17"):
        read_answers(path)


def test_another_protocol_or_model_is_refused_with_what_changed(tmp_path):
    store(tmp_path, measured={"windows": 50})
    with pytest.raises(ConfigError, match=r"windows 50, now 20"):
        store(tmp_path, measured={"windows": 20})
    with pytest.raises(ConfigError, match=r"model a 'x', now 'y'"):
        store(tmp_path, models={"a": "y"}, measured={"windows": 50})


def test_more_models_may_join_a_measurement(tmp_path):
    store(tmp_path)
    store(tmp_path, models={"b": "z"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["models"] == {"a": "x", "b": "z"}
    with pytest.raises(ConfigError, match="model a 'x', now 'y'"):
        store(tmp_path, models={"a": "y"})


def test_losses_are_nan_until_they_are_done(tmp_path):
    rows = store(tmp_path).candidate("a").losses("targets-64", (3, 2))
    assert np.isnan(rows).all()
    rows[1] = [0.5, np.inf]
    again = store(tmp_path).candidate("a").losses("targets-64", (3, 2))
    np.testing.assert_array_equal(again[1], np.array([0.5, np.inf], np.float32))
    assert np.isnan(again[[0, 2]]).all()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"nothing of the kind"])
def test_a_damaged_loss_file_is_named(tmp_path, content):
    rows = store(tmp_path).candidate("a")
    rows.losses("targets-64", (3, 2))
    (path,) = tmp_path.glob("losses/*/targets-64.npy")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"targets-64\.npy is damaged .* remove it"):
        rows.losses("targets-64", (3, 2))


def test_a_loss_file_of_other_windows_is_refused(tmp_path):
    rows = store(tmp_path).candidate("a")
    rows.losses("targets-64", (3, 2))
    with pytest.raises(DataError, match=r"float32 \(3, 2\), expected float32 \(4, 2\)"):
        rows.losses("targets-64", (4, 2))


def test_labels_that_look_alike_have_files_of_their_own():
    names = {file_name(label) for label in ("yarn ×4", "yarn ×8", "yarn/4", "..", "")}
    assert len(names) == 5
    assert not any("/" in name or name.startswith(".") for name in names)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        store(tmp_path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="results cannot be written to"):
        store(tmp_path / "file" / "out")


def test_documents_of_named_protocols_come_back_too(tmp_path):
    losses = np.array([1.0, 2.5], np.float32)
    for rows in (Samples("a"), store(tmp_path).candidate("a")):
        assert rows.finished("last-s-64", 3) is None
        rows.keep("last-s-64", 3, losses)
        np.testing.assert_array_equal(rows.finished("last-s-64", 3), losses)
