"""Changes to a module, and that nothing of them is left once they are reverted."""

from torch import nn

from ropepatch.surgery import HookChange, UnusedParameters


def test_a_reverted_hook_is_in_no_table_of_torch():
    module = nn.Linear(2, 2)

    def tables():
        return {name: dict(value) for name, value in vars(module).items() if "hooks" in name}

    before = tables()
    change = HookChange(module, lambda *arguments, **keywords: None)
    change.apply()
    assert tables() != before
    change.revert()
    assert tables() == before


def test_parameters_that_were_frozen_stay_frozen_once_they_are_used_again():
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    change = UnusedParameters(module)
    change.apply()
    assert not module.bias.requires_grad
    change.revert()
    assert (module.weight.requires_grad, module.bias.requires_grad) == (False, True)
