"""Stacks of layers whose scores carry a bias: ALiBi by architecture, T5's tables by structure."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ropepatch.adapters.biased import (
    BiasedForward,
    BloomForward,
    FalconForward,
    MptForward,
    T5Forward,
    Umt5Forward,
)
from ropepatch.adapters.pretrained import text_config
from ropepatch.attention.score_bias import AlibiBias, BucketBias, PlacedBias, ScoreBias
from ropepatch.errors import UnsupportedModelError
from ropepatch.methods import Method
from ropepatch.methods.base import AlibiGeometry, RelativeGeometry
from ropepatch.methods.replacement import Replacement

Part = Literal["encoder", "decoder"]

# ALiBi leaves no module behind to be found by: the class of the attention module, what replaces its
# forward, the attribute by which its stack makes or wants the bias, whether padding is no distance.
ALIBI: dict[str, tuple[type[BiasedForward], str, bool]] = {
    "BloomAttention": (BloomForward, "build_alibi_tensor", True),
    "MptAttention": (MptForward, "build_mpt_alibi_tensor", False),
    "FalconAttention": (FalconForward, "use_alibi", True),
    "FalconFlashAttention2": (FalconForward, "use_alibi", True),
}
# T5's attention is known by what its forward calls the states that cross-attention reads.
RELATIVE: dict[str, type[BiasedForward]] = {
    "key_value_states": T5Forward,
    "encoder_hidden_states": Umt5Forward,
}


@dataclass
class Attention:
    """One attention module of a stack."""

    path: str
    module: nn.Module
    forward: type[BiasedForward]
    owner: nn.Module | None = None  #: T5: whose table is in use, this module's or the first layer's
    crosses: bool = False  #: reads the encoder's output, without a bias


@dataclass
class BiasStack:
    """The encoder or the decoder of a model, and its attention modules."""

    module: nn.Module
    mechanism: Literal["alibi", "relative"]
    part: Part
    config: PreTrainedConfig
    attentions: list[Attention] = field(default_factory=list)

    @property
    def causal(self) -> bool:
        """Whether queries see earlier keys only."""
        return self.part == "decoder"

    def biases(self, method: Method | None, length: int) -> dict[nn.Module, ScoreBias]:
        """The bias of every attention module that has one; many share theirs.

        Raises MethodOptionError for a geometry that the method cannot take.
        """
        attentions = [each for each in self.attentions if not each.crosses]
        if isinstance(method, Replacement):
            heads = self.config.num_attention_heads
            return {
                each.module: PlacedBias(self.module, method, heads, layer)
                for layer, each in enumerate(attentions)
            }
        if self.mechanism == "alibi":
            alibi = AlibiBias(alibi_geometry(self.config, length), method)
            return {each.module: alibi for each in attentions}
        geometry = RelativeGeometry(
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
            bidirectional=not self.causal,
            original_max_position_embeddings=length,
        )
        tables = {each.owner: BucketBias(geometry, method, each.owner) for each in attentions}
        return {each.module: tables[each.owner] for each in attentions}


def each_once(biases: Iterable[ScoreBias]) -> list[ScoreBias]:
    """Biases without those that come again, as layers share theirs."""
    return list({id(bias): bias for bias in biases}.values())


def alibi_geometry(config: PreTrainedConfig, length: int) -> AlibiGeometry:
    """Heads and steepness. MPT's config has a steepness of its own, which stock ignores."""
    bias_max = getattr(getattr(config, "attn_config", None), "alibi_bias_max", 8)
    falcon = config.model_type == "falcon"
    return AlibiGeometry(
        num_heads=config.num_attention_heads,
        bias_max=float(bias_max),
        slope_scale=config.head_dim**-0.5 if falcon else 1.0,
        original_max_position_embeddings=length,
    )


def notes_on(stacks: list[BiasStack]) -> tuple[str, ...]:
    """Where a patched model is right and stock is not, for people to read."""
    notes = []
    config = stacks[0].config
    if config.model_type == "falcon":
        notes.append(
            "stock Falcon adds ALiBi twice in eager attention, and rounds it to bfloat16 in any; "
            "patched, it is added once, in float32, so logits differ from stock's"
        )
    if stacks[0].mechanism == "alibi" and alibi_geometry(config, 1).bias_max != 8:
        notes.append(
            "stock MPT ignores alibi_bias_max; patched, the slopes follow the config, so logits "
            "differ from stock's"
        )
    return tuple(notes)


def find_bias_stacks(model: PreTrainedModel) -> list[BiasStack]:
    """Every stack of `model` that adds a score bias; none for a rotary model.

    Raises UnsupportedModelError for T5-like attention of another shape.
    """
    stacks: dict[nn.Module, BiasStack] = {}
    config = text_config(model)
    owner = model
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owner = module  # modules come parents first, and attention right behind its stack
        found = _alibi_attention(path, module, config) or _relative_attention(path, module)
        if found is None:
            continue
        mechanism: Literal["alibi", "relative"] = (
            "alibi" if type(module).__name__ in ALIBI else "relative"
        )
        decoder = mechanism == "alibi" or bool(owner.config.is_decoder)
        stack = stacks.setdefault(
            owner, BiasStack(owner, mechanism, "decoder" if decoder else "encoder", owner.config)
        )
        if found.owner is None and mechanism == "relative" and not found.crosses:
            found.owner = stack.attentions[0].owner  # the first layer's, for all that have none
        stack.attentions.append(found)
    return list(stacks.values())


def _alibi_attention(path: str, module: nn.Module, config: PreTrainedConfig) -> Attention | None:
    known = ALIBI.get(type(module).__name__)
    if known is None or not getattr(config, "alibi", True):
        return None
    return Attention(path, module, known[0])


def _relative_attention(path: str, module: nn.Module) -> Attention | None:
    if not hasattr(module, "has_relative_attention_bias"):
        return None
    parameters = inspect.signature(type(module).forward).parameters
    forward = next((made for name, made in RELATIVE.items() if name in parameters), None)
    if forward is None or not hasattr(module, "compute_bias"):
        raise UnsupportedModelError(
            f"{type(module).__name__} at {path!r} has relative biases of another kind than T5's; "
            "nothing was patched"
        )
    crosses = not path.endswith("SelfAttention")
    owner = module if module.has_relative_attention_bias else None
    return Attention(path, module, forward, owner, crosses)
