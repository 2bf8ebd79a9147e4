"""The rotary module that a patch puts in place of the stock one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from ropepatch.attention.row_scales import RowScales, Scaled, row_scales
from ropepatch.errors import MethodError
from ropepatch.methods.base import Method, RotaryFrequencies, RotaryGeometry
from ropepatch.methods.replacement import Replacement

Layout = Literal["halves", "interleaved", "pairs"]

# How a family repeats the dim/2 angles over the channels that it rotates.
LAYOUTS: dict[Layout, Callable[[Tensor], Tensor]] = {
    # Llama, NeoX: pair (i, i + dim/2)
    "halves": lambda angles: torch.cat((angles, angles), dim=-1),
    # Cohere: pair (2i, 2i + 1)
    "interleaved": lambda angles: angles.repeat_interleave(2, dim=-1),
    # GPT-OSS expands them itself
    "pairs": lambda angles: angles,
}

_NO_FLOAT64 = ("mps", "meta")  # on Apple's GPUs angles are made on the host


def _with_float64(tensor: Tensor) -> Tensor:
    """The tensor where float64 arithmetic is possible."""
    return tensor.cpu() if tensor.device.type in _NO_FLOAT64 else tensor


class RowFrequencies(NamedTuple):
    """Frequencies of every row, (rows, dim/2), and which rows they change."""

    frequencies: RotaryFrequencies
    scaled: Tensor  #: (rows, 1, 1)
    all_scaled: bool | None  #: None: some, or not known


@dataclass
class RotarySite:
    """One set of frequencies in a rotary module: the only one, or that of one layer type."""

    layer_type: str | None
    geometry: RotaryGeometry
    method: Method | None  #: None leaves the site as the checkpoint has it
    inv_freq: Tensor  #: unscaled float64 (dim/2,); not a buffer, so that no dtype cast reaches it
    stock: Tensor  #: the same as the stock module rounds it, by which unscaled keys are rotated
    frequencies: RotaryFrequencies | None  #: what a static method made; None: unscaled or per row

    @classmethod
    def plan(
        cls, layer_type: str | None, geometry: RotaryGeometry, method: Method | None, stock: Tensor
    ) -> Self:
        """Evaluate a static method once. Raises MethodOptionError when it cannot take the geometry."""
        inv_freq, frequencies = geometry.inv_freq, None
        if method is not None:
            frequencies = _checked(method, geometry)
            # A replacement's are exact, too, where they are those that the stock module may have cast.
            as_it_is = (
                not isinstance(method, Replacement) and not is_scaled(frequencies, inv_freq).any()
            )
            if method.length_dependent or as_it_is:
                frequencies = None
            else:
                # A number and not a tensor, so that no device has to hold it.
                factor = float(frequencies.attention_factor)
                frequencies = RotaryFrequencies(frequencies.inv_freq, factor)
        rounded = _with_float64(stock).double()
        return cls(layer_type, geometry, method, inv_freq, rounded, frequencies)

    @property
    def per_row(self) -> bool:
        """Whether every row gets frequencies by its own length."""
        return self.method is not None and self.method.length_dependent

    def rows(self, scales: RowScales) -> RowFrequencies:
        """What a length-dependent method makes of the rows of a request."""
        return scales.once(self.layer_type, self._rows)

    def _rows(self, tokens: Tensor) -> RowFrequencies:
        assert self.method is not None
        tokens = _with_float64(tokens)
        made = self.method.rotary(self.geometry, tokens)
        factor = torch.as_tensor(made.attention_factor, device=tokens.device).expand(len(tokens))
        scaled = is_scaled(made, self.inv_freq.to(tokens.device))
        stock = self.stock.to(tokens.device)
        made = RotaryFrequencies(torch.where(scaled[:, None], made.inv_freq, stock), factor)
        share = None
        if not torch.compiler.is_compiling():
            share = True if scaled.all() else None if scaled.any() else False
        return RowFrequencies(made, scaled[:, None, None], share)

    def to(self, device: torch.device) -> None:
        """Move, never cast: float64 is what keeps angles exact."""
        if device.type in _NO_FLOAT64:
            return
        self.inv_freq, self.stock = self.inv_freq.to(device), self.stock.to(device)
        if self.frequencies is not None:
            self.frequencies = RotaryFrequencies(
                self.frequencies.inv_freq.to(device), self.frequencies.attention_factor
            )


def _checked(method: Method, geometry: RotaryGeometry) -> RotaryFrequencies:
    """What a method makes, or a MethodError that says what is wrong with it (users write methods, too)."""
    made = method.rotary(geometry)
    if not isinstance(made, RotaryFrequencies):
        raise MethodError(
            f"{method.name!r} returned {type(made).__name__} from rotary(); allowed: RotaryFrequencies"
        )
    if made.inv_freq.shape != (geometry.dim // 2,) or not made.inv_freq.isfinite().all():
        raise MethodError(
            f"{method.name!r} made frequencies of shape {tuple(made.inv_freq.shape)}, "
            f"{int((~made.inv_freq.isfinite()).sum())} of them not finite; allowed: "
            f"{geometry.dim // 2} finite numbers"
        )
    return made


def is_scaled(frequencies: RotaryFrequencies, inv_freq: Tensor) -> Tensor:
    """Whether frequencies of shape (…, dim/2) differ from the checkpoint's own. → (…)"""
    moved = ((frequencies.inv_freq - inv_freq).abs() > 1e-12 * inv_freq).any(-1)
    factor = torch.as_tensor(frequencies.attention_factor, device=moved.device)
    return moved | (factor != 1.0)


class ScaledRotary(Scaled, nn.Module):
    """Scaled cos and sin from `position_ids`, in the layout of the stock module that it wraps.

    Angles are products of whole positions and float64 frequencies; only cos and sin are cast.
    Whatever is unscaled (factor 1, short rows of length-dependent methods, layer types left alone)
    is computed by the stock module, so that it is bit-identical.
    """

    def __init__(self, stock: nn.Module, layout: Layout, sites: list[RotarySite]) -> None:
        super().__init__()
        self.stock = stock
        self.layout: Layout = layout
        self.sites = {site.layer_type: site for site in sites}

    @torch.no_grad()
    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos and sin in the dtype of `x`, both (batch, n, channels) for (batch, n) positions."""
        site = self.sites.get(layer_type)
        if site is None or not (site.per_row or site.frequencies):
            return self._unscaled(x, position_ids, layer_type)
        if site.frequencies is not None:
            return self._rotation(x, position_ids, site.frequencies)
        return self._per_row(x, position_ids, site)

    def _per_row(self, x: Tensor, position_ids: Tensor, site: RotarySite) -> tuple[Tensor, Tensor]:
        scales = row_scales(self)
        if scales is None:  # called on its own: positions are all there is to tell lengths
            scales = RowScales(position_ids.amax(-1) + 1)
        scales.called_at = position_ids
        made, scaled, all_scaled = site.rows(scales)
        if all_scaled is False:
            return self._unscaled(x, position_ids, site.layer_type)
        factor = torch.as_tensor(made.attention_factor)[:, None, None]
        ours = self._rotation(x, position_ids, RotaryFrequencies(made.inv_freq[:, None], factor))
        if all_scaled:
            return ours
        stock = self._unscaled(x, position_ids, site.layer_type)
        scaled = scaled.to(x.device)
        return torch.where(scaled, ours[0], stock[0]), torch.where(scaled, ours[1], stock[1])

    def _rotation(
        self, x: Tensor, position_ids: Tensor, frequencies: RotaryFrequencies
    ) -> tuple[Tensor, Tensor]:
        positions = _with_float64(position_ids)
        angles = positions[..., None].double() * frequencies.inv_freq.to(positions.device)
        spread, factor = LAYOUTS[self.layout], frequencies.attention_factor
        if isinstance(factor, Tensor):
            factor = factor.to(positions.device)
        cos, sin = spread(angles.cos() * factor), spread(angles.sin() * factor)
        return cos.to(x.dtype).to(x.device), sin.to(x.dtype).to(x.device)

    def _unscaled(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None
    ) -> tuple[Tensor, Tensor]:
        arguments = () if layer_type is None else (layer_type,)
        cos, sin = self.stock(x, position_ids, *arguments)
        return cos, sin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(dtype)`, `.half()` and `.bfloat16()` come through here. They may move the
        # frequencies, of the stock module too, but not round them: in bfloat16 an angle is off by
        # 40 rad at position 32768.
        device = fn(torch.empty(0, device=self.device)).device
        if device.type != "meta":
            self.stock._apply(lambda tensor: tensor.to(device), recurse)
            for site in self.sites.values():
                site.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the frequencies are."""
        return next(self.stock.buffers()).device

    def extra_repr(self) -> str:
        """Method and frequencies of each site, for `print(model)`."""
        return ", ".join(
            f"{'' if site.layer_type is None else site.layer_type + ': '}{site.method}"
            for site in self.sites.values()
            if site.method is not None
        )
