"""What fixes scales beforehand: options of the method, and plans for a call."""

import pytest
import torch
from loops import EVERY_METHOD, ROUNDING, dynamic, static, step_by_step
from tiny_models import fresh_model, logits, token_ids

from ropepatch import patch_model, planned_length
from ropepatch.errors import LengthError, MethodOptionError, NotPatchedError


@EVERY_METHOD
def test_growth_of_the_buckets_is_an_option(method):
    ids = token_ids(1, 40)
    model = dynamic("llama", method, bucket_growth=4.0)
    decoded, _ = step_by_step(model, ids, [0, 35, 36, 40])
    torch.testing.assert_close(decoded, logits(static("llama", method, 128), ids), **ROUNDING)


@EVERY_METHOD
def test_the_target_length_is_a_bucket_whatever_the_growth(method):
    ids = token_ids(1, 100)
    model = dynamic("llama", method, bucket_growth=10.0)  # 32 and 320 tokens without it
    torch.testing.assert_close(
        logits(model, ids), logits(static("llama", method, 128), ids), **ROUNDING
    )


@EVERY_METHOD
def test_generate_without_a_mask_does_not_count_padding(method):
    """20 tokens of text and 5 new ones are within the trained length of 32, 45 would not be."""
    ids = token_ids(2, 40)
    ids[:, :20] = 0
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    model = dynamic("llama", method)
    found, expected = (
        torch.stack(model.generate(ids, **settings, **more).logits)
        for more in ({}, {"attention_mask": ids.ne(0).long()})
    )
    torch.testing.assert_close(found, expected, **ROUNDING)


@EVERY_METHOD
def test_training_takes_the_length_of_the_row_or_the_one_given(method):
    ids = token_ids(1, 64)
    model = dynamic("llama", method).train()
    expected = logits(static("llama", method, 64), ids)
    torch.testing.assert_close(logits(model, ids), expected, **ROUNDING)
    model = dynamic("llama", method, training_length=128).train()
    expected = logits(static("llama", method, 128), ids)
    torch.testing.assert_close(logits(model, ids), expected, **ROUNDING)


def test_training_refuses_positions_that_may_be_of_a_part():
    model = dynamic("llama", "dynamic_ntk").train()
    ids, positions = token_ids(1, 20), torch.arange(20)[None] + 20
    with pytest.raises(LengthError, match="training_length="):
        model(ids, position_ids=positions)
    mask = torch.ones_like(ids)
    with pytest.raises(LengthError, match="training_length="):  # the mask is of the part, too
        model(ids, position_ids=positions, attention_mask=mask)
    model(ids, position_ids=positions - 20, attention_mask=mask)
    dynamic("llama", "dynamic_ntk", training_length=64).train()(ids, position_ids=positions)


@pytest.mark.parametrize("masked", [False, True])
def test_rows_longer_than_the_training_length_are_refused(masked):
    ids = token_ids(1, 64)
    more = {"attention_mask": torch.ones_like(ids)} if masked else {}
    with pytest.raises(LengthError, match="64 tokens is longer than training_length"):
        dynamic("llama", "dynamic_ntk", training_length=48).train()(ids, **more)


def test_rows_can_be_planned_one_by_one():
    ids = token_ids(2, 20)
    model = dynamic("llama", "dynamic_ntk")
    with planned_length(model, torch.tensor([64, 128])):
        found = logits(model, ids)
    for row, bucket in enumerate((64, 128)):
        expected = logits(static("llama", "dynamic_ntk", bucket), ids)
        torch.testing.assert_close(found[row], expected[row], **ROUNDING)


def test_a_plan_for_other_rows_is_refused():
    model = dynamic("llama", "dynamic_ntk")
    with (
        planned_length(model, torch.tensor([64, 64, 128])),
        pytest.raises(LengthError, match="how long 3 rows get, but this call has 2"),
    ):
        model(token_ids(2, 20))


@pytest.mark.parametrize("tokens", [0, -3, 1.5, True, "64", torch.ones(2, 2, dtype=torch.long)])
def test_what_is_no_length_cannot_be_planned(tokens):
    with pytest.raises(LengthError, match="a whole number, at least 1"):  # noqa: SIM117
        with planned_length(dynamic("llama", "dynamic_ntk"), tokens):
            pass


def test_lengths_are_planned_for_length_dependent_methods_only():
    with pytest.raises(NotPatchedError), planned_length(fresh_model("llama"), 64):
        pass
    model = patch_model(fresh_model("llama"), "yarn", 4)
    with pytest.raises(MethodOptionError, match="every length alike"), planned_length(model, 64):
        pass
