"""Decoding loops under torch.compile: as many graphs as the unpatched model has, and the same numbers."""

import pytest
import torch
from decoding import make_batch, make_cache
from loops import ROUNDING, TARGET, dynamic, one_layer, step_by_step
from tiny_bias_models import fresh_bias_model
from tiny_models import fresh_model, token_ids
from torch._dynamo.utils import counters
from transformers import CompileConfig

from ropepatch import patch_model, planned_length

PADS = 5
BORDERS = [0, 31, 32, 33, 34, 65, 66]  # through buckets of 32, 64 and 128
SHORT = BORDERS[:5]  # from 32 to 64, without the further graph of a chunk in the middle


@pytest.fixture
def compiler():
    """No graphs of other tests, and none left to them: there is a limit for each function."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_loop(model, ids, borders, cache, more):
    """Logits, graphs and graph breaks of a loop with the compiled model."""
    torch.compiler.reset()
    counters.clear()
    found, _ = step_by_step(torch.compile(model, backend="eager"), ids, borders, cache, **more)
    return found, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def compare(make_model, make_patched, cache_kind, padding, borders=SHORT):
    ids = token_ids(2, borders[-1])
    more = {} if padding == "none" else {"mask": make_batch("left", borders[-1], pads=PADS).mask}
    stock, patched, uncompiled = make_model(), make_patched(), make_patched()
    caches = [make_cache(stock, cache_kind, 80) for _ in range(3)]
    _, graphs, breaks = compiled_loop(stock, ids, borders, caches[0], more)
    found, *ours = compiled_loop(patched, ids, borders, caches[1], more)
    assert ours == [graphs, breaks]
    expected, _ = step_by_step(uncompiled, ids, borders, caches[2], **more)
    start = PADS if padding == "left" else 0
    torch.testing.assert_close(found[:, start:], expected[:, start:], **ROUNDING)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("kind", "method", "cache_kind", "padding", "borders"),
    [
        ("llama", "dynamic_yarn", "static", "left", BORDERS),
        ("cohere", "longrope", "dynamic", "left", SHORT),  # interleaved pairs
        ("gemma3_text", "dynamic_ntk", "dynamic", "none", SHORT),  # two layer types
    ],
)
def test_a_compiled_loop_through_buckets_has_the_graphs_of_stock(
    kind, method, cache_kind, padding, borders
):
    small = (lambda model: model) if kind == "gemma3_text" else one_layer
    compare(
        lambda: small(fresh_model(kind)),
        lambda: small(dynamic(kind, method)),
        cache_kind,
        padding,
        borders,
    )


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("kind", "padding"), [("bloom", "left"), ("mpt", "none")])
def test_a_compiled_loop_of_a_bias_model_has_the_graphs_of_a_static_method(kind, padding):
    def patched(method):
        return patch_model(one_layer(fresh_bias_model(kind)), method, TARGET)

    compare(lambda: patched("linear"), lambda: patched("dynamic_linear"), "dynamic", padding)


@pytest.mark.usefixtures("compiler")
def test_what_is_planned_is_known_in_a_graph():
    """And rows of calls outside of the plan, through the same graph, are not scaled for it."""
    ids = token_ids(2, 20)

    def planned_and_not(model, called):
        counters.clear()
        with torch.no_grad():
            with planned_length(model, torch.tensor([64, 128])):
                planned = step_by_step(called, ids, [0, 19, 20])[0]
                with planned_length(model, 96):
                    again = called(ids).logits
            return planned, again, called(ids).logits

    model = one_layer(dynamic("llama", "longrope"))
    found = planned_and_not(model, torch.compile(model, backend="eager"))
    assert not counters["graph_break"]
    for ours, expected in zip(found, planned_and_not(model, model), strict=True):
        torch.testing.assert_close(ours, expected, **ROUNDING)


@pytest.mark.usefixtures("compiler")
def test_generate_with_compiled_steps_gives_the_same_tokens():
    batch = make_batch("left", 20, pads=PADS)
    settings = CompileConfig(backend="eager", mode=None)
    settings._compile_all_devices = True  # steps are compiled for accelerators only otherwise
    graphs = []

    def generate(model, **more):
        return model.generate(
            batch.ids, attention_mask=batch.mask, max_new_tokens=30, do_sample=False, **more
        )

    compiled = {"cache_implementation": "static", "compile_config": settings}
    stock, patched = (
        one_layer(model) for model in (fresh_model("llama"), dynamic("llama", "longrope"))
    )
    for model in (stock, patched):
        torch.compiler.reset()
        counters.clear()
        tokens = generate(model, **compiled)
        assert not counters["graph_break"]
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]
    assert torch.equal(tokens, generate(one_layer(dynamic("llama", "longrope"))))
