"""Methods as values, and methods of one's own."""

import dataclasses
import pickle
from dataclasses import dataclass

import pytest
import torch

from ropepatch.errors import MethodError, MethodOptionError, UnsupportedMechanismError
from ropepatch.methods import (
    Method,
    RotaryFrequencies,
    RotaryGeometry,
    make_method,
    methods_for,
    register_method,
    registry,
    rotary_frequencies,
)

LISTS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [3.0, 4.0, 5.0, 6.0]}
SHIPPED = [
    make_method(name, factor=4.0, **(LISTS if name == "longrope" else {})) for name in methods_for()
]
methods = pytest.mark.parametrize("method", SHIPPED, ids=lambda method: method.name)


@methods
def test_a_method_cannot_be_changed(method):
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.factor = 8.0


@methods
def test_a_method_takes_options_by_name_only(method):
    with pytest.raises(TypeError, match="positional"):
        type(method)(4.0)


@methods
def test_equal_options_make_equal_methods_with_equal_hashes(method):
    twin = make_method(method.name, factor=method.factor, **method.options())
    assert (twin, hash(twin)) == (method, hash(method))


@methods
def test_another_factor_makes_another_method(method):
    assert dataclasses.replace(method, factor=5.0) != method


@methods
def test_a_method_survives_pickling(method):
    assert pickle.loads(pickle.dumps(method)) == method


def test_methods_of_different_names_differ_though_their_options_are_the_same():
    assert make_method("linear", factor=4) != make_method("dynamic_linear", factor=4)


def test_a_list_that_changes_later_does_not_change_the_method_made_of_it():
    given = [1.0, 2.0]
    method = make_method("longrope", short_factor=given, long_factor=given)
    given[0] = 9.0
    assert method.options()["short_factor"] == (1.0, 2.0)


def test_options_are_all_fields_but_the_factor():
    options = make_method("ntk_by_parts", factor=4, beta_fast=16).options()
    assert options == {"beta_fast": 16, "beta_slow": 1.0, "truncate": True, "ramp": "index"}


def test_the_methods_that_depend_on_the_length_say_so():
    assert {method.name for method in SHIPPED if method.length_dependent} == {
        "dynamic_linear",
        "dynamic_ntk",
        "dynamic_yarn",
        "longrope",
    }


@methods
def test_a_method_that_says_it_is_static_reads_no_length(method):
    geometry = RotaryGeometry(dim=8, original_max_position_embeddings=256)
    if "rotary" in method.mechanisms() and not method.length_dependent:
        found = method.rotary(geometry, torch.tensor([8, 4096]))
        assert torch.equal(found.inv_freq, method.rotary(geometry).inv_freq)


def test_a_method_that_overrides_nothing_serves_no_mechanism():
    assert Method.mechanisms() == ()


@pytest.mark.parametrize(
    ("mechanism", "names"),
    [("alibi", ["dynamic_linear", "linear", "ntk"]), ("relative", ["linear", "log"])],
)
def test_score_biases_are_served_by_few(mechanism, names):
    assert methods_for(mechanism, replacing=False) == names


@pytest.mark.parametrize("mechanism", [None, "rotary", "alibi", "relative", "absolute"])
def test_methods_either_replace_or_scale(mechanism):
    replace, scale = (methods_for(mechanism, replacing=way) for way in (True, False))
    assert sorted(replace + scale) == methods_for(mechanism)
    assert not set(replace) & set(scale)


def test_a_method_that_serves_no_rotary_model_is_not_listed_for_them():
    assert set(methods_for()) - set(methods_for("rotary")) == {"log"}


@pytest.fixture
def own_registry(monkeypatch):
    """What is registered in the test is forgotten after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))


@pytest.fixture
def halved(own_registry):
    """A user's own method."""

    @register_method("halved", aliases=("half",))
    @dataclass(frozen=True, kw_only=True)
    class Halved(Method):
        """The slowest pairs at half their frequency."""

        pairs: int = 1

        def rotary(self, geometry, length=None):
            inv_freq = geometry.inv_freq
            inv_freq[-self.pairs :] /= 2
            return RotaryFrequencies(inv_freq)

    return Halved


def test_an_own_method_is_made_by_its_name(halved):
    assert make_method("halved", pairs=2) == halved(pairs=2)


def test_an_own_method_is_made_by_its_alias(halved):
    assert make_method("half") == halved()


def test_an_own_method_is_listed_among_those_of_its_mechanism(halved):
    assert "halved" in methods_for("rotary")


def test_an_own_method_gives_frequencies_like_any_other(halved):
    found = rotary_frequencies(
        "halved", dim=4, base=100.0, original_max_position_embeddings=256, pairs=1
    )
    assert found.inv_freq.tolist() == [1.0, 0.05]


def test_an_own_method_checks_its_factor_like_any_other(halved):
    with pytest.raises(MethodOptionError, match=r"^factor is 0"):
        make_method("halved", factor=0)


def test_an_own_method_refuses_unknown_options_like_any_other(halved):
    with pytest.raises(MethodOptionError, match="no option 'pair'; did you mean 'pairs'"):
        make_method("halved", pair=1)


@pytest.mark.parametrize("taken", ["yarn", "pi"])
def test_a_taken_name_is_refused(own_registry, taken):
    class Mine(Method):
        pass

    with pytest.raises(MethodError, match=rf"name '{taken}' is taken by ropepatch\.methods"):
        register_method(taken)(Mine)


def test_a_taken_alias_is_refused(own_registry):
    class Mine(Method):
        pass

    with pytest.raises(MethodError, match="name 'su' is taken"):
        register_method("mine", aliases=("su",))(Mine)


def test_a_refused_class_leaves_the_registry_as_it_was(own_registry):
    class Mine(Method):
        pass

    before = methods_for()
    with pytest.raises(MethodError):
        register_method("mine", aliases=("yarn",))(Mine)
    assert methods_for() == before


def test_a_class_that_only_shares_the_name_of_the_owner_is_refused(own_registry):
    namesake = type("Yarn", (Method,), {"__module__": "somebody.elses"})
    with pytest.raises(MethodError, match="name 'yarn' is taken"):
        register_method("yarn")(namesake)


def test_a_class_that_is_defined_again_replaces_itself(own_registry):
    first, second = (type("Cell", (Method,), {"__module__": "__main__"}) for _ in range(2))
    register_method("cell")(first)
    register_method("cell")(second)
    assert type(make_method("cell")) is second


@pytest.mark.parametrize(
    "thing",
    [int, dataclass, "yarn", None, make_method("linear")],
    ids=["class", "function", "name", "none", "instance"],
)
def test_what_is_no_method_class_is_refused(own_registry, thing):
    with pytest.raises(MethodError, match=r"is not a subclass of ropepatch\.Method"):
        register_method("mine")(thing)


def test_a_method_says_which_mechanism_it_does_not_serve(own_registry):
    @register_method("idle")
    @dataclass(frozen=True, kw_only=True)
    class Idle(Method):
        pass

    with pytest.raises(UnsupportedMechanismError, match="'idle' does not rescale rotary"):
        rotary_frequencies("idle", dim=4, original_max_position_embeddings=256)
