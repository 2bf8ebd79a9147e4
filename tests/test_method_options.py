"""Options, geometries and names: what is refused and how, and what methods are as values."""

import math

import pytest

from ropepatch.errors import (
    MethodError,
    MethodOptionError,
    UnknownMethodError,
)
from ropepatch.methods import (
    RotaryGeometry,
    make_method,
    methods_for,
    rotary_frequencies,
)

LISTS = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
REQUIRED = {"longrope": LISTS}
ALL = methods_for()
NO_NUMBERS = [math.nan, math.inf, -math.inf, "4", True, None, [4], 4j]


def refusal(name: str, **options: object) -> str:
    """The message with which the options are refused."""
    with pytest.raises(MethodOptionError) as refused:
        make_method(name, **{**REQUIRED.get(name, {}), **options})
    return str(refused.value)


@pytest.mark.parametrize("factor", [0, 0.999, -4, *NO_NUMBERS], ids=repr)
@pytest.mark.parametrize("name", ALL)
def test_a_factor_that_is_no_number_from_1_on_is_refused(name, factor):
    assert refusal(name, factor=factor) == f"factor is {factor!r}; allowed: a finite number >= 1"


@pytest.mark.parametrize(
    ("name", "option", "value", "allowed"),
    [
        ("ntk", "alpha", 0.5, ">= 1"),
        ("dynamic_ntk", "alpha", 0.0, ">= 1"),
        ("base_change", "new_base", 1, "> 1"),
        ("base_change", "new_base", -1e4, "> 1"),
        ("yarn", "beta_fast", -1.0, "> 0"),
        ("yarn", "beta_slow", 0, "> 0"),
        ("yarn", "attention_factor", 0.0, "> 0"),
        ("yarn", "mscale", -0.1, ">= 0"),
        ("yarn", "mscale_all_dim", -1, ">= 0"),
        ("llama3", "low_freq_factor", 0, "> 0"),
        ("llama3", "high_freq_factor", -4, "> 0"),
        ("longrope", "attention_factor", -1.0, "> 0"),
        ("power", "exponent", -0.5, ">= 0"),
        ("proportional", "proportion", 1.01, ">= 0 and <= 1"),
        ("proportional", "proportion", -0.01, ">= 0 and <= 1"),
        ("truncated", "keep_above", 0, "> 0"),
        ("truncated", "stop_below", 0, "> 0"),
        ("truncated", "middle", -1, "> 0"),
    ],
)
def test_a_number_out_of_bounds_is_refused_with_the_bounds(name, option, value, allowed):
    expected = f"{option} is {value!r}; allowed: a finite number {allowed}"
    assert refusal(name, **{option: value}) == expected


NUMBERS = [
    *((name, option) for name in ("ntk_by_parts", "yarn") for option in ("beta_fast", "beta_slow")),
    *(
        (name, option)
        for name in ("yarn", "dynamic_yarn")
        for option in ("mscale", "mscale_all_dim")
    ),
    ("llama3", "low_freq_factor"),
    ("llama3", "high_freq_factor"),
    ("power", "exponent"),
    ("proportional", "proportion"),
    ("truncated", "middle"),
    ("dynamic_ntk", "alpha"),
]
NUMBERS_OR_NONE = [
    ("ntk", "alpha"),
    ("base_change", "new_base"),
    ("yarn", "attention_factor"),
    ("dynamic_yarn", "attention_factor"),
    ("longrope", "attention_factor"),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize(("name", "option"), [*NUMBERS, *NUMBERS_OR_NONE])
def test_what_is_no_finite_number_is_refused(name, option, value):
    if value is None and (name, option) in NUMBERS_OR_NONE:
        assert getattr(make_method(name, **REQUIRED.get(name, {})), option) is None
    else:
        assert refusal(name, **{option: value}).startswith(f"{option} is {value!r}; allowed: ")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "yarn",
            {"beta_fast": 1, "beta_slow": 1},
            "beta_fast is 1; allowed: more than beta_slow (1)",
        ),
        ("yarn", {"beta_fast": 0.5}, "beta_fast is 0.5; allowed: more than beta_slow (1.0)"),
        (
            "llama3",
            {"low_freq_factor": 4, "high_freq_factor": 4},
            "high_freq_factor is 4; allowed: more than low_freq_factor (4)",
        ),
        ("truncated", {"stop_below": 2}, "stop_below is 2; allowed: at most keep_above (1.0)"),
        (
            "truncated",
            {"middle": 1},
            "middle is 1; allowed: at most stop_below (0.125), so that no pair turns faster than before",
        ),
        ("yarn", {"truncate": 0}, "truncate is 0; allowed: True or False"),
        ("yarn", {"truncate": "no"}, "truncate is 'no'; allowed: True or False"),
        ("yarn", {"ramp": "paper"}, "ramp is 'paper'; allowed: 'index' or 'turns'"),
        ("yarn", {"ramp": ["index"]}, "ramp is ['index']; allowed: 'index' or 'turns'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(name, options, message):
    assert refusal(name, **options) == message


@pytest.mark.parametrize("option", ["short_factor", "long_factor"])
@pytest.mark.parametrize("given", [[], (), 4.0, None, "12", {1.0: 2.0}], ids=repr)
def test_what_is_no_list_of_numbers_is_refused_by_longrope(option, given):
    message = refusal("longrope", **{option: given})
    assert message == f"{option} is {given!r}; allowed: a list of positive numbers"


@pytest.mark.parametrize("option", ["short_factor", "long_factor"])
@pytest.mark.parametrize("entry", [-1.0, 0, *NO_NUMBERS], ids=repr)
def test_a_bad_entry_of_a_list_is_refused_by_its_index(option, entry):
    message = refusal("longrope", **{option: [1.0, entry]})
    assert message == f"{option}[1] is {entry!r}; allowed: a finite number > 0"


@pytest.mark.parametrize("length", [1, 3, 64])
@pytest.mark.parametrize("option", ["short_factor", "long_factor"])
def test_a_list_of_another_length_than_the_pairs_is_refused(option, length):
    method = make_method("longrope", **{**LISTS, option: [1.0] * length})
    geometry = RotaryGeometry(dim=4, original_max_position_embeddings=256)
    with pytest.raises(MethodOptionError, match=f"^{option} has {length} entries; allowed: 2, one"):
        method.rotary(geometry)


@pytest.mark.parametrize("dim", [0, -2, 7, 1, 64.0, "64", True, None], ids=repr)
def test_a_dim_that_is_no_even_number_of_channels_is_refused(dim):
    with pytest.raises(MethodOptionError, match=r"^dim is .*; allowed: an even number") as refused:
        RotaryGeometry(dim=dim, original_max_position_embeddings=2048)
    assert repr(dim) in str(refused.value)


@pytest.mark.parametrize("name", ["ntk", "dynamic_ntk"])
def test_a_single_pair_is_refused_where_it_would_divide_by_zero(name):
    with pytest.raises(MethodOptionError, match=r"^dim is 2; allowed: at least 4 for") as refused:
        rotary_frequencies(name, dim=2, original_max_position_embeddings=2048)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("length", [0, -2048, 2048.0, "2048", True, None], ids=repr)
def test_an_original_length_that_is_no_whole_number_of_tokens_is_refused(length):
    with pytest.raises(MethodOptionError) as refused:
        RotaryGeometry(dim=64, original_max_position_embeddings=length)
    assert str(refused.value).startswith(
        f"original_max_position_embeddings is {length!r}; allowed: a whole number of tokens"
    )


@pytest.mark.parametrize("base", [1, 0, -1e4, *NO_NUMBERS], ids=repr)
def test_a_base_that_is_no_number_above_1_is_refused(base):
    with pytest.raises(MethodOptionError) as refused:
        RotaryGeometry(dim=64, base=base, original_max_position_embeddings=2048)
    assert str(refused.value) == f"base is {base!r}; allowed: a finite number > 1"


@pytest.mark.parametrize("seq_len", [0, -1, 4.0, "4", True], ids=repr)
def test_a_sequence_length_that_is_no_whole_number_of_tokens_is_refused(seq_len):
    with pytest.raises(MethodOptionError, match=r"^seq_len is .*; allowed: a whole number"):
        rotary_frequencies(
            "dynamic_ntk", dim=64, original_max_position_embeddings=2048, seq_len=seq_len
        )


def test_an_unknown_option_is_refused_with_the_closest_one_and_all_others():
    assert refusal("yarn", beta_fats=16) == (
        "'yarn' has no option 'beta_fats'; did you mean 'beta_fast'?; options: factor, beta_fast,"
        " beta_slow, truncate, ramp, attention_factor, mscale, mscale_all_dim"
    )


def test_an_option_of_another_method_is_refused():
    assert refusal("linear", beta_fast=32).startswith("'linear' has no option 'beta_fast'")


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "short_factor, long_factor"),
        ({"short_factor": [1.0]}, "long_factor"),
        ({"long_factor": [1.0], "factor": 2}, "short_factor"),
    ],
)
def test_missing_lists_of_longrope_are_named(options, missing):
    with pytest.raises(MethodOptionError) as refused:
        make_method("longrope", **options)
    assert str(refused.value) == f"'longrope' needs the option(s) {missing}"


@pytest.mark.parametrize(
    ("typed", "meant"), [("yran", "yarn"), ("Linear", "linear"), ("p-i", "pi")]
)
def test_an_unknown_method_is_refused_with_the_closest_one(typed, meant):
    with pytest.raises(UnknownMethodError, match=f"no method '{typed}'; did you mean '{meant}'"):
        make_method(typed)


@pytest.mark.parametrize("name", ["", "zzzz", None, 4, ["yarn"]], ids=repr)
def test_a_name_like_no_other_is_refused_with_the_list_of_methods(name):
    with pytest.raises(UnknownMethodError, match=r"; methods: alibi, .*linear.*, yarn$"):
        make_method(name)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("pi", "linear"),
        ("dynamic", "dynamic_ntk"),
        ("su", "longrope"),
        ("abf", "base_change"),
        ("p_rope", "proportional"),
    ],
)
def test_an_alias_makes_the_method_of_the_full_name(alias, name):
    options = REQUIRED.get(name, {})
    assert make_method(alias, **options) == make_method(name, **options)


def test_options_beside_a_method_instance_are_refused():
    with pytest.raises(MethodOptionError, match="'linear' is given as an instance"):
        rotary_frequencies(
            make_method("linear"), dim=64, original_max_position_embeddings=2048, factor=4
        )


@pytest.mark.parametrize("mechanism", ["rotari", "", 3])
def test_an_unknown_mechanism_is_refused_with_those_there_are(mechanism):
    with pytest.raises(MethodError, match=r"is no mechanism; mechanisms: .*rotary"):
        methods_for(mechanism)
