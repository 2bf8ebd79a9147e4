"""The report's ledger: what was run, said once where all stages share it, per stage where not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ropepatch.evals.evaluation import Evaluation, Json

_LONGEST = 160  #: characters of a setting; all of it stands in the JSON below the tables


@dataclass(frozen=True)
class Ledger:
    """Settings as text."""

    shared: tuple[tuple[str, str], ...]
    differing: tuple[str, ...]  #: names of settings
    stages: tuple[tuple[str, tuple[str, ...]], ...]  #: label, and what it has of those


def ledger(stages: Sequence[Evaluation]) -> Ledger:
    """Settings of all stages; the protocol's digest comes first."""
    settings = [{"protocol": stage.protocol, **_flat(stage.configuration)} for stage in stages]
    names = list(dict.fromkeys(name for each in settings for name in each))
    shared = [name for name in names if len({each.get(name, "–") for each in settings}) == 1]
    differing = tuple(name for name in names if name not in shared)
    return Ledger(
        tuple((name.replace("_", " "), settings[0][name]) for name in shared),
        tuple(name.replace("_", " ") for name in differing),
        tuple(
            (stage.label, tuple(each.get(name, "–") for name in differing))
            for stage, each in zip(stages, settings, strict=True)
        ),
    )


def _flat(configuration: Mapping[str, Json]) -> dict[str, str]:
    """Settings by name, those of a group by the group's name too, but a patch in one line."""
    flat: dict[str, str] = {}
    for name, value in configuration.items():
        if name != "patch" and isinstance(value, dict) and value:
            flat.update({f"{name}: {key}": _text(item) for key, item in value.items()})
        else:
            flat[name] = _patch(value) if name == "patch" else _text(value)
    return flat


def _patch(patch: Json) -> str:
    if not isinstance(patch, dict):
        return "none"
    options = patch.get("options")
    said = [f"{k}={_text(v)}" for k, v in options.items()] if isinstance(options, dict) else []
    lengths = [patch.get(f"{which}max_position_embeddings") for which in ("original_", "")]
    text = f"{patch.get('method')}({', '.join(said)})"
    return f"{text}, {lengths[0]} → {lengths[1]} tokens" if None not in lengths else text


def _text(value: Json) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | dict) and not value:
        return "none"
    text = ", ".join(map(_text, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
