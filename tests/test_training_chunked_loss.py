"""The loss in chunks: the numbers of transformers' own, to rounding, from any head."""

import copy

import pytest
import torch
from seq2seq_models import seq2seq_model
from tiny_models import KINDS, fresh_model, token_ids
from tiny_runs import pretraining_tree
from torch.nn import functional as F

from ropepatch.errors import ConfigError
from ropepatch.training.chunked_loss import IGNORED, chunked_cross_entropy
from ropepatch.training.lm_loss import use_chunked_loss
from ropepatch.training.lora import add_lora
from ropepatch.training.recipe import parse_recipe
from ropepatch.training.runner import train
from ropepatch.training.sections import LoraRecipe


def labelled(rows=2, length=40):
    """Tokens, and labels of which some are not scored."""
    ids = token_ids(rows, length)
    labels = ids.clone()
    labels[0, :7] = IGNORED
    labels[-1, 20:23] = IGNORED
    return {"input_ids": ids, "labels": labels}


def gradients(model, **more):
    """The loss and all gradients of a training step."""
    model.train().zero_grad()
    loss = model(**labelled(), **more).loss
    loss.backward()
    found = {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    return loss.detach(), {name: gradient.clone() for name, gradient in found.items()}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """About 8 tokens at a time, which 78 do not divide into."""
    monkeypatch.setattr("ropepatch.training.lm_loss._LOGITS", 8 * 96)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"num_items_in_batch": 50}])
def test_loss_and_gradients_are_those_of_the_model(kind, more):
    model = fresh_model(kind)
    loss, expected = gradients(model, **more)
    use_chunked_loss(model)
    ours, found = gradients(model, **more)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(ours, loss, atol=1e-6, rtol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_as_near_to_those_of_float64_as_their_dtype_allows(cap, trained, dtype):
    """Element by element, and with no more error than all logits at once have."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 32, generator=generator).to(dtype)
    weight = (torch.randn(500, 32, generator=generator) / 4).to(dtype)
    labels = torch.randint(500, (300,), generator=generator)
    labels[:20] = IGNORED

    def all_logits(logits):
        """transformers' own loss upcasts them."""
        return logits if logits.dtype == torch.float64 else logits.float()

    def loss_of(dtype, chunked):
        states = hidden.to(dtype).detach().requires_grad_()
        table = weight.to(dtype).detach().requires_grad_(trained)

        def head(part):
            logits = part @ table.t()
            return logits if cap is None else torch.tanh(logits / cap) * cap

        if chunked:
            given = (table,) if trained else ()
            loss = chunked_cross_entropy(states, labels, head, given, chunk=64)
        else:
            loss = F.cross_entropy(all_logits(head(states)), labels, ignore_index=IGNORED)
        loss.backward()
        return [loss.detach(), states.grad, *([table.grad] if trained else [])]

    exact = loss_of(torch.float64, False)
    for found, stock, expected in zip(
        loss_of(dtype, True), loss_of(dtype, False), exact, strict=True
    ):
        error, allowed = ((each.double() - expected).abs().max() for each in (found, stock))
        assert error <= 2 * allowed + torch.finfo(torch.float32).eps * expected.abs().max()


def test_gradients_of_a_bfloat16_head_are_summed_in_float32():
    """1,024 times 1/2048; in bfloat16, 1/4 + 1/2048 is 1/4, so that no sum gets beyond."""
    states = torch.ones(1024, 1, dtype=torch.bfloat16)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(1024, dtype=torch.long)
    chunked_cross_entropy(states, labels, lambda part: part @ head.t(), (head,), chunk=1).backward()
    # Of equal logits, softmax is 1/2: the mean of (1/2 - 1) and of (1/2 - 0).
    assert head.grad.flatten().tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("train_embeddings", [True, False])
def test_adapters_and_trained_heads_get_their_gradients(tied, train_embeddings):
    model = fresh_model("llama")
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    chunked = copy.deepcopy(model)
    use_chunked_loss(chunked)
    results = []
    for each in (model, chunked):
        torch.manual_seed(0)
        recipe = LoraRecipe(train_embeddings=train_embeddings, train_norms=True)
        results.append(gradients(add_lora(each, recipe)))
    (loss, expected), (ours, found) = results
    assert found.keys() == expected.keys()
    torch.testing.assert_close(ours, loss, atol=1e-6, rtol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


def test_logits_are_there_in_evaluation_and_without_labels():
    model = fresh_model("llama")
    expected = model.eval()(**labelled())
    use_chunked_loss(model)
    found = model(**labelled())
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)
    assert model.train()(labelled()["input_ids"]).logits is not None
    tokens = model.eval().generate(labelled()["input_ids"][:1], max_new_tokens=2, do_sample=False)
    assert tokens.shape == (1, 42)


def test_a_head_that_is_not_understood_is_refused():
    model = fresh_model("llama")
    model.loss_function = lambda logits, labels, **more: 2 * logits.square().mean()
    with pytest.raises(ConfigError, match="does not know how LlamaForCausalLM makes its loss"):
        use_chunked_loss(model)


def test_logits_that_are_scaled_in_another_way_are_refused():
    """Of a model without training losses tell nothing: all tokens are about as likely."""
    model = fresh_model("granite")
    model.config.logits_scaling = 8.0
    use_chunked_loss(model)
    model = fresh_model("llama")
    model.config.logits_scaling = 1.5  # which Llama does not look at
    with pytest.raises(ConfigError, match="and of its logits up to"):
        use_chunked_loss(model)


def test_encoder_decoder_models_are_refused():
    with pytest.raises(ConfigError, match="causal language models, not T5"):
        use_chunked_loss(seq2seq_model())


def test_a_run_has_the_losses_of_one_without_chunks(tmp_path):
    losses = []
    for chunked in (False, True):
        tree = pretraining_tree(tmp_path, chunked_loss=chunked)
        tree["output_dir"] = str(tmp_path / f"run-{chunked}")
        losses.append(train(parse_recipe(tree)).loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
