"""What trains in a replaced encoding: ordinary parameters of the patched model."""

import copy
import math
import pickle

import pytest
import torch
from covering import each_value
from dense_replacements import dense_logits
from peft import LoraConfig, get_peft_model
from replacement_cells import ALIBI, IDS, Cell, answers, crossed, fresh, placed, replaced
from safetensors.torch import load_file
from tiny_bias_models import assert_near, padded
from tiny_models import KINDS, tiny_model, token_ids
from torch import Tensor

from ropepatch import patch_model, save_pretrained, unpatch_model

pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated")
BOTH = {"part": "both"}
TRAINABLE = ALIBI[1][1]
PER_LAYER = {"per_layer": True}

NAMES = {
    Cell("llama", "alibi", TRAINABLE): {"model.alibi.slopes": (4,)},
    Cell("llama", "kerple_log"): {"model.kerple_log.r1": (4,), "model.kerple_log.r2": (4,)},
    Cell("llama", "kerple_power"): {"model.kerple_power.r1": (4,), "model.kerple_power.r2": (4,)},
    Cell("llama", "t5_bias"): {"model.t5_bias.weight": (32, 4)},
    Cell("llama", "t5_bias", PER_LAYER): {"model.t5_bias.weight": (2, 32, 4)},
    Cell("llama", "scaled_sinusoidal"): {"model.scaled_sinusoidal.scalar": (1,)},
    Cell("llama", "learned"): {"model.learned.weight": (64, 64)},
    Cell("gpt_neox", "t5_bias"): {"gpt_neox.t5_bias.weight": (32, 4)},
    Cell("bloom", "t5_bias"): {"transformer.t5_bias.weight": (32, 6)},
    Cell("t5", "kerple_log", BOTH): {
        f"{stack}.kerple_log.{name}": (6,)
        for stack in ("encoder", "decoder")
        for name in ("r1", "r2")
    },
    Cell("umt5", "alibi", {"part": "encoder", **TRAINABLE}): {"encoder.alibi.slopes": (6,)},
    Cell("t5", "learned", {"part": "decoder"}): {"decoder.learned.weight": (64, 48)},
    Cell("gpt2", "scaled_sinusoidal"): {"transformer.scaled_sinusoidal.scalar": (1,)},
    Cell("gpt_neo", "kerple_power"): {
        "transformer.kerple_power.r1": (4,),
        "transformer.kerple_power.r2": (4,),
    },
    Cell("bert", "kerple_log", PER_LAYER): {
        "bert.kerple_log.r1": (2, 4),
        "bert.kerple_log.r2": (2, 4),
    },
}
WITH_PARAMETERS = pytest.mark.parametrize("cell", NAMES, ids=str)


@WITH_PARAMETERS
def test_parameters_have_names_that_say_what_they_are(cell):
    model = fresh(cell.kind)
    before = dict(model.named_parameters())
    patch_model(model, cell.method, 2, **cell.options)
    after = dict(model.named_parameters())
    new = {name: tuple(after[name].shape) for name in after.keys() - before.keys()}
    assert new == NAMES[cell]
    assert all(after[name].requires_grad for name in new)
    assert new.keys() <= model.state_dict().keys()


@WITH_PARAMETERS
def test_a_full_checkpoint_has_them_under_their_names(cell, tmp_path):
    model = replaced(cell)
    held = load_file(save_pretrained(model, tmp_path / "model") / "model.safetensors")
    for name, parameter in placed(model, cell.method).items():
        assert torch.equal(held[name], parameter)


def weighted(logits: Tensor, rows: int = 2) -> Tensor:
    """A loss that depends on every logit."""
    weights = torch.randn(rows, *logits.shape[1:], generator=torch.Generator().manual_seed(3))
    return (logits * weights[: len(logits)].to(logits)).mean()


def arguments(model, ids):
    return {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}


def backward(model, ids: Tensor = IDS) -> dict[str, Tensor]:
    """Gradients of that loss, by parameter."""
    model.zero_grad()
    cache = {"use_cache": False} if model.can_generate() else {}
    weighted(model(input_ids=ids, **arguments(model, ids), **cache).logits).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got, expected, tolerance=1e-5):
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        assert (got[name] - each).abs().max() <= tolerance * largest, name


DENSE = [*NAMES, Cell("gemma3_text", "kerple_log"), Cell("smollm3", "t5_bias")]
DENSE += [Cell("bloom", "kerple_log"), Cell("mpt", "kerple_power"), Cell("falcon", "kerple_log")]
DENSE += [Cell("roberta", "t5_bias"), Cell("distilbert", "kerple_log"), Cell("opt", "t5_bias")]


@pytest.mark.parametrize("cell", DENSE, ids=str)
def test_their_gradients_are_those_of_the_definition(cell, monkeypatch):
    model = replaced(cell)
    got = backward(model)
    mine = {n: p.detach().double().requires_grad_() for n, p in placed(model, cell.method).items()}
    weighted(dense_logits(cell, mine, monkeypatch)).backward()
    for name, parameter in mine.items():
        assert_near(got[name], parameter.grad, 3e-5)


@pytest.mark.parametrize("cell", [cell for cell in NAMES if cell.options == PER_LAYER], ids=str)
def test_layers_may_have_parameters_of_their_own(cell, monkeypatch):
    model = replaced(cell)
    with torch.no_grad():
        expected = dense_logits(cell, placed(model, cell.method), monkeypatch)
    assert_near(answers(model), expected)


@pytest.mark.parametrize("method", ["kerple_log", "t5_bias", "learned", "scaled_sinusoidal"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_gradients_of_a_padded_batch_are_those_of_its_rows_alone(method, padding):
    cell = Cell("llama", method)
    ids, mask = padded(40, padding)
    model = replaced(cell).train()

    def gradients(rows, kept):
        model.zero_grad()
        out = model(input_ids=ids[rows], attention_mask=mask[rows], use_cache=False).logits
        out[kept].square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    together = gradients(slice(0, 2), mask.bool())
    first = gradients(slice(0, 1), mask[:1].bool())
    alone = ids[1:, mask[1].bool()]
    model.zero_grad()
    model(input_ids=alone, use_cache=False).logits.square().sum().backward()
    summed = {name: p.grad + first[name] for name, p in model.named_parameters()}
    assert_same_gradients(together, summed)


CHECKPOINTED = [Cell(kind, "kerple_log") for kind in KINDS]
CHECKPOINTED += [cell for cell in NAMES if cell.kind in ("llama", "bloom", "t5", "gpt2", "gpt_neo")]
CHECKPOINTED += [Cell("llama", "xpos"), Cell("bert", "kerple_log")]


@pytest.mark.parametrize(("cell", "use_reentrant"), crossed(CHECKPOINTED, [False, True]), ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(cell, use_reentrant):
    model = replaced(cell)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    expected = backward(model)
    assert placed(model, cell.method).keys() <= expected.keys()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    assert_same_gradients(backward(model), expected)


LIMITED = {
    "kerple_log": {"r1": (0.01, None), "r2": (0.01, None)},
    "kerple_power": {"r1": (0.01, None), "r2": (0.01, 2.0)},
}


@pytest.mark.parametrize("kind", ["llama", "bloom", "bert"])
@pytest.mark.parametrize("method", LIMITED)
@pytest.mark.parametrize("direction", [-100.0, 100.0])
def test_a_step_beyond_the_limits_of_the_paper_goes_to_the_limit(kind, method, direction):
    model = replaced(Cell(kind, method)).train()
    for parameter in placed(model, method).values():
        parameter.data += direction
    backward(model)
    for name, parameter in placed(model, method).items():
        low, high = LIMITED[method][name.rpartition(".")[2]]
        limit = low if direction < 0 else high
        if limit is not None:
            assert torch.equal(parameter, torch.full_like(parameter, limit))


@pytest.mark.parametrize("kind", ["llama", "bloom", "bert"])
@pytest.mark.parametrize("method", LIMITED)
def test_after_the_last_step_of_training_the_limits_hold_too(kind, method):
    """The optimizer's last step is followed by no call in training mode."""
    model, at_the_limit = (replaced(Cell(kind, method)) for _ in range(2))
    for parameter in placed(model, method).values():
        parameter.data.fill_(-3.0)
    for parameter in placed(at_the_limit, method).values():
        parameter.data.fill_(0.01)
    assert torch.equal(answers(model), answers(at_the_limit))


WAYS = ["plain", "reentrant", "not reentrant", "compiled", "peft"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("way", WAYS)
def test_beyond_a_limit_the_gradient_is_that_at_the_limit(way, training):
    """A parameter that something put there, and a model that is trained in evaluation mode."""
    cell = Cell("llama", "kerple_power")

    def gradients(value):
        model = replaced(cell)
        if way == "peft":
            model = get_peft_model(model, LoraConfig(r=2, modules_to_save=[cell.method]))
        if "reentrant" in way:
            model.gradient_checkpointing_enable({"use_reentrant": way == "reentrant"})
            model.enable_input_require_grads()
        model.train(training)
        parameters = [
            p for n, p in model.named_parameters() if cell.method in n and p.requires_grad
        ]
        for parameter in parameters:
            parameter.data.fill_(value)
        if way == "compiled":
            model.model.get_submodule(cell.method).compile(backend="aot_eager", fullgraph=True)
        model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
        return [parameter.grad for parameter in parameters]

    beyond, at_the_limit = gradients(-0.1), gradients(0.01)
    assert len(beyond) == 2
    for got, expected in zip(beyond, at_the_limit, strict=True):
        assert (expected != 0).all()
        assert torch.equal(got, expected)


@each_value(cell=list(NAMES), how=["deepcopy", "pickle"])
def test_copies_have_parameters_of_their_own(cell, how):
    model = replaced(cell)
    expected = answers(model)
    copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    for parameter in placed(model, cell.method).values():
        parameter.data.fill_(0.5)
    assert torch.equal(answers(copied), expected)
    assert not torch.equal(answers(model), expected)
    unpatch_model(copied)
    assert placed(model, cell.method)


@WITH_PARAMETERS
def test_they_are_cast_with_the_model_whether_before_or_after_the_patch(cell):
    model = replaced(cell).to(torch.bfloat16)
    assert {p.dtype for p in placed(model, cell.method).values()} == {torch.bfloat16}
    later = replaced(cell, fresh(cell.kind).to(torch.bfloat16))
    assert {p.dtype for p in placed(later, cell.method).values()} == {torch.bfloat16}
    assert torch.equal(answers(model), answers(later))
    assert answers(model).isfinite().all()


def test_vectors_are_added_to_embeddings_that_are_multiplied_already():
    model, ids = tiny_model("granite", embedding_multiplier=12.0), token_ids(1, 8)
    patch_model(model, "sinusoidal", 2)
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(ids)
        wanted = 12.0 * model.get_input_embeddings()(ids)
    for position in range(8):
        for pair in range(wanted.shape[-1] // 2):
            angle = position / 10000 ** (2 * pair / wanted.shape[-1])
            wanted[0, position, 2 * pair] += math.sin(angle)
            wanted[0, position, 2 * pair + 1] += math.cos(angle)
    torch.testing.assert_close(seen[0], wanted)
