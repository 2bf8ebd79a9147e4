"""Recipes: the schema, its messages, and the overrides."""

from pathlib import Path

import pytest
import yaml

from ropepatch.errors import ConfigError
from ropepatch.training.recipe import load_recipe, parse_recipe, recipe_differences, recipe_tree

RECIPES = sorted(Path(__file__).parent.parent.glob("recipes/**/*.yaml"))
SMALLEST = {
    "model": {"path": "somewhere"},
    "training": {"max_steps": 3, "learning_rate": 0.1},
    "output_dir": "out",
}


def write(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def refusal(tree: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(tree)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path):
    assert load_recipe(path).training.max_steps > 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_open_with_the_command_that_runs_them(path):
    relative = path.relative_to(Path(__file__).parent.parent)
    command = path.read_text(encoding="utf-8").splitlines()[0]
    assert f"ropepatch train {relative}" in command.removeprefix("# ")


def test_a_recipe_written_out_reads_back_as_itself():
    recipe = parse_recipe({**SMALLEST, "patch": {"options": {"beta_fast": 16.0}}, "lora": {"r": 8}})
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(recipe_tree(recipe)))) == recipe


def test_numbers_in_exponent_notation_are_numbers():
    # YAML 1.1 reads 1e-3, without a point, as text.
    tree = yaml.safe_load("{max_steps: 3, learning_rate: 1e-3}")
    assert tree["learning_rate"] == "1e-3"
    assert parse_recipe({**SMALLEST, "training": tree}).training.learning_rate == 1e-3


def test_all_mistakes_are_reported_at_once():
    message = refusal(
        {
            "model": {"pth": "x", "path": "y"},
            "training": {"max_step": 3, "learning_rate": "fast", "precision": "bf17"},
            "lora": {"r": 1.5},
            "data": {"mixture": {"retrival": 0.2}},
            "ouput_dir": "out",
        }
    )
    mistakes = [
        "unknown key model.pth; did you mean path?",
        "unknown key training.max_step; did you mean max_steps?",
        "unknown key ouput_dir; did you mean output_dir?",
        "unknown key data.mixture.retrival; did you mean retrieval?",
        "training.max_steps is missing",
        "output_dir is missing",
        "training.learning_rate must be a valid number",
        "found 'fast'",
        "training.precision must be 'auto', 'fp32', 'bf16' or 'fp16'; found 'bf17'",
        "lora.r must be a valid integer",
    ]
    assert [mistake for mistake in mistakes if mistake not in message] == []


def test_many_unknown_keys_are_counted_and_what_is_known_is_listed_once():
    strange = {letter * 9: 1 for letter in "qwxyzjk"}
    said = refusal({**SMALLEST, "lora": {**strange, "alfa": 8, "drop_out": 0.1, "r": 0}})
    known = "preset, r, alpha, dropout, targets, train_embeddings, train_norms, dora, rslora, merge"
    assert said.splitlines() == [
        "recipe has 10 mistakes:",
        "  - lora.r must be greater than or equal to 1; found 0",
        "  - unknown key lora.alfa; did you mean alpha?",
        "  - unknown key lora.drop_out; did you mean dropout?",
        "  - unknown keys lora.qqqqqqqqq, lora.wwwwwwwww, lora.xxxxxxxxx, lora.yyyyyyyyy, "
        f"lora.zzzzzzzzz and 2 more; known: {known}",
    ]


def test_of_many_misspelt_keys_a_few_are_corrected():
    misspelt = [f"factor{number}" for number in range(9)]
    *lines, last = refusal({**SMALLEST, "patch": dict.fromkeys(misspelt, 1)}).splitlines()
    assert lines == [
        "recipe has 9 mistakes:",
        *(f"  - unknown key patch.{key}; did you mean factor?" for key in misspelt[:5]),
    ]
    others = ", ".join(f"patch.{key}" for key in misspelt[5:])
    assert last.startswith(f"  - unknown keys {others}; known: method, factor, ")


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("patch", 4, "patch must be a section with some of the keys method, factor"),
        ("patch", {"method": "yran"}, "there is no method 'yran'; did you mean 'yarn'?"),
        ("patch", {"options": {"beta_fst": 1}}, "did you mean 'beta_fast'?"),
        ("patch", {"part": "encodr"}, "patch.part must be"),
        ("patch", {"factor": 0.5}, "patch.factor must be greater than or equal to 1; found 0.5"),
        ("model", {}, "takes either path or config; found neither"),
        ("model", {"path": "a", "config": {}}, "takes either path or config; found both"),
        ("lora", {"targets": "atention"}, "did you mean attention?"),
        ("data", {"length": 1}, "data.length must be greater than or equal to 2; found 1"),
        ("data", {"target_length": 0}, "data.target_length must be greater than or equal to 1"),
        (
            "data",
            {"length": 64, "target_length": 64, "mixture": {"retrieval": 0}},
            "leaves nothing of length (64)",
        ),
        ("data", {"target_length": 64}, "retrieval and drills are for causal models"),
        (
            "data",
            {"target_length": 64, "mixture": {"retrieval": 0, "drill_phase": 0.1}},
            "retrieval and drills are for causal models",
        ),
    ],
)
def test_a_wrong_section_is_explained(section, value, expected):
    assert expected in refusal({**SMALLEST, section: value})


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"warmup_steps": 3, "decay_steps": 2}, "(3 + 2) exceed max_steps (4)"),
        ({"schedule": "warmup_stable_decay"}, "need each other"),
        ({"decay_steps": 2}, "need each other"),
        ({"schedule": "cosin"}, "did you mean cosine?"),
        ({"learning_rate": float("nan")}, "training.learning_rate must be"),
        ({"per_device_batch_size": 0}, "must be greater than or equal to 1; found 0"),
    ],
)
def test_contradicting_or_impossible_training_options_are_refused(training, expected):
    tree = {"max_steps": 4, "learning_rate": 0.1, **training}
    assert expected in refusal({**SMALLEST, "training": tree})


def test_an_adapter_of_an_untrained_model_is_refused():
    assert "lora needs model.path" in refusal({**SMALLEST, "model": {"config": {}}, "lora": {}})


def test_an_adapter_has_no_rate_of_its_own_for_embeddings():
    training = {**SMALLEST["training"], "embedding_learning_rate": 0.2}
    said = refusal({**SMALLEST, "training": training, "lora": {}})
    assert "embedding_learning_rate is for whole models" in said


@pytest.mark.parametrize(
    ("method", "option"),
    [("kerple_log", "per_layer"), ("t5_bias", "num_buckets"), ("alibi", "seed")],
)
def test_an_option_of_the_method_beside_options_is_told_where_it_goes(method, option):
    said = refusal({**SMALLEST, "patch": {"method": method, option: 1, "fctor": 2.0}})
    assert f"unknown key patch.{option}; did you mean patch.options.{option}?" in said
    assert "unknown key patch.fctor; did you mean factor?" in said


@pytest.mark.parametrize("method", ["yarn", "alibbi", 3])
def test_what_is_no_option_of_the_method_is_an_unknown_key(method):
    said = refusal({**SMALLEST, "patch": {"method": method, "num_buckets": 8}})
    assert "unknown key patch.num_buckets" in said
    assert "patch.options" not in said


SHIFTED = {**SMALLEST["training"], "shifted_attention": {"group": 8}}


@pytest.mark.parametrize("method", ["alibi", "kerple_log", "t5_bias", "xpos"])
def test_shifted_attention_is_refused_with_a_method_that_brings_its_own(method):
    said = refusal({**SMALLEST, "training": SHIFTED, "patch": {"method": method}})
    assert f"patch.method '{method}' brings its own attention" in said
    assert "leave shifted_attention out" in said


@pytest.mark.parametrize("method", ["yarn", "nope", "sinusoidal"])
def test_shifted_attention_goes_with_a_method_that_leaves_attention_alone(method):
    recipe = parse_recipe({**SMALLEST, "training": SHIFTED, "patch": {"method": method}})
    assert recipe.training.shifted_attention is not None


OWN_TEXT = {"source": "books/train"}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"data": OWN_TEXT}, "give evaluation.source, or evaluation: null"),
        ({"data": OWN_TEXT, "evaluation": {"source": "books/train"}}, "is trained on; give other"),
        ({"data": OWN_TEXT, "evaluation": {"source": "books/train/one.txt"}}, "is trained on"),
        ({"data": OWN_TEXT, "evaluation": {"source": "./books/../books"}}, "is trained on"),
        ({"data": {"split": "held_out"}}, "evaluation.source (stdlib) is trained on"),
        ({"evaluation": {"factors": [8]}}, "evaluation.factors are other factors of patch"),
        ({"patch": {}, "evaluation": {"factors": [4, 8]}}, "factors repeat 4"),
        (
            {
                "patch": {},
                "evaluation": {"factors": [4, 8]},
                "stages": [{"steps": 1}, {"steps": 2, "factor": 8}],
            },
            "factors repeat 8",
        ),
        ({"evaluation": {"lengths": []}}, "evaluation.lengths"),
        ({"evaluation": {"factors": [0.5]}}, "greater than or equal to 1; found 0.5"),
    ],
)
def test_an_evaluation_that_would_say_nothing_is_refused(sections, expected):
    assert expected in refusal({**SMALLEST, **sections})


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"evaluation": {"source": "stdlib"}},
        {"data": OWN_TEXT, "evaluation": None},
        {"data": OWN_TEXT, "evaluation": {"source": "stdlib"}},
        {"data": OWN_TEXT, "evaluation": {"source": "books/train_more"}},
        {"data": {"split": "held_out"}, "evaluation": {"source": "books"}},
    ],
)
def test_an_evaluation_on_other_text_is_taken(sections):
    parse_recipe({**SMALLEST, **sections})


def test_overrides_are_yaml_and_make_missing_sections(tmp_path):
    path = write(tmp_path / "a.yaml", {**SMALLEST, "lora": None})
    overrides = ("training.precision=bf16", "training.learning_rate=1e-4", "lora.r=2", "patch={}")
    recipe = load_recipe(path, overrides)
    assert recipe.lora is not None
    assert recipe.patch is not None
    assert (recipe.training.precision, recipe.training.learning_rate) == ("bf16", 1e-4)
    assert (recipe.lora.r, recipe.patch.method) == (2, "yarn")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.max_steps", "not of the form section.key=value"),
        ("=3", "not of the form section.key=value"),
        ("training..a=3", "not of the form section.key=value"),
        ("output_dir.a=3", "output_dir is a value, not a section"),
        ("lora=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_explained(tmp_path, override, expected):
    with pytest.raises(ConfigError, match="the overrides") as caught:
        load_recipe(write(tmp_path / "a.yaml", SMALLEST), (override,))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: [1", "not valid YAML: line 1: "),
        (b"", "holds no sections"),
        (b"- a", "holds no sections"),
        (b"{model}: x", "not valid YAML: line 1: found unhashable key"),
        (b"model: x\nmodel: y", "line 2: the key model comes twice"),
        (b"\xff\xfe\x00", "not a text file"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, expected):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_recipe(path)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(tmp_path / "a.yaml")


def test_differences_name_the_keys():
    old = {"a": {"b": 1, "c": 2}, "d": 3}
    new = {"a": {"b": 1, "c": 4}, "e": 5}
    assert recipe_differences(old, new) == ["a.c: 2 → 4", "d: 3 → None", "e: None → 5"]
