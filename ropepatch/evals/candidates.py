"""What is compared to a base: other checkpoints, adapters on it, and methods swapped in place.

Only the base and one other model are loaded at a time; methods and adapters use the base itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import nn

from ropepatch.adapters.pretrained import pretrained_model
from ropepatch.checkpoint import ADAPTER_CONFIG, load_pretrained, read_json, read_sidecar
from ropepatch.errors import ConfigError, RopepatchError
from ropepatch.evals.evaluation import Evaluation
from ropepatch.evals.long_ppl import KeyTokens, find_key_tokens, judge_plan, long_perplexities
from ropepatch.evals.perplexity import Perplexity, measure_perplexity
from ropepatch.evals.perplexity_plan import PerplexityPlan
from ropepatch.evals.plan import Plan
from ropepatch.evals.runner import measure, work_left
from ropepatch.evals.samples import Samples
from ropepatch.evals.scored_tokens import reading_left, score_tokens
from ropepatch.extras import require_package
from ropepatch.methods.registry import method_class
from ropepatch.patch import list_methods, patch_info, patched, unpatch_model

Load = Callable[[str], nn.Module]  #: a model from a checkpoint's directory or name
Tell = Callable[[str, float], None]  #: told what is measured, and the share of the work done


@dataclass(frozen=True)
class Candidate:
    """One model: a checkpoint or an adapter at `source`, or else the base, with a method or without."""

    label: str
    source: str | None = None
    method: str | None = None
    factor: float | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether it goes on the base."""
        return self.source is not None and Path(self.source, ADAPTER_CONFIG).is_file()

    def opened(
        self, base: nn.Module, load: Load, trained: int
    ) -> AbstractContextManager[nn.Module]:
        """The model for as long as the body runs; afterwards the base is as it was."""
        if self.method is not None:
            return patched(base, self.method, self.factor, original_max_position_embeddings=trained)
        if self.source is None:
            return nullcontext(base)
        return _adapter_on(base, self.source) if self.is_adapter else nullcontext(load(self.source))


def method_candidates(
    base: nn.Module, methods: Sequence[str], factors: Sequence[float], trained: int
) -> list[Candidate]:
    """Every method at every factor, each put in and out once.

    Raises ConfigError that lists all that cannot be patched into the base.
    """
    found, mistakes = [], []
    served = list_methods(base) if methods else []
    for method in methods:
        try:
            name = method_class(method).name
            if name not in served:
                kind = type(pretrained_model(base)).__name__
                raise ConfigError(f"{name!r} is not for {kind}, which takes {', '.join(served)}")
            for factor in factors:
                with patched(base, name, factor, original_max_position_embeddings=trained):
                    found.append(Candidate(f"{name} ×{factor:g}", method=name, factor=factor))
        except RopepatchError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("nothing was measured: " + "; ".join(dict.fromkeys(mistakes)))
    return found


def check_adapter(directory: Path) -> None:
    """Raise SidecarError for an adapter that does not say what it was trained on.

    Raises MissingExtraError where peft, which opens it, is not installed.
    """
    require_package("peft", "train", f"the adapter {directory}")
    read_sidecar(directory)
    read_json(directory / ADAPTER_CONFIG)


def measure_candidates(
    base: nn.Module,
    candidates: Sequence[Candidate],
    plan: Plan,
    load: Load,
    *,
    perplexity: PerplexityPlan | None = None,
    key_tokens: PerplexityPlan | None = None,
    tell: Tell = lambda label, share: None,
    samples: Callable[[str], Samples] = Samples,
) -> list[Evaluation]:
    """Each in turn, by the same plans; what `samples` has of one is not measured again.

    The first, the base, judges which are the `key_tokens` whose perplexity LongPPL is.
    """
    kept = [samples(candidate.label) for candidate in candidates]
    trained = plan.protocol.trained_length
    own = [work_left(plan, rows) for rows in kept]
    reading = reading_work(perplexity, key_tokens, trained, kept)
    parts = _Parts(tell, sum(own) + sum(map(sum, reading)))
    tell(candidates[0].label, 0.0)
    stages: list[Evaluation] = []
    keys: KeyTokens | None = None
    for candidate, rows, work, read in zip(candidates, kept, own, reading, strict=True):
        part = partial(parts.of, candidate.label)
        with candidate.opened(base, load, trained) as model:
            root = pretrained_model(model)
            stage = measure(root, plan, candidate.label, part(work), rows)
            found: list[Perplexity] = []
            if perplexity is not None:
                progress = part(read.perplexity)
                found += measure_perplexity(root, perplexity, store=rows, progress=progress)
            if key_tokens is not None:
                keys = keys or find_key_tokens(
                    root,
                    key_tokens,
                    trained_length=trained,
                    store=rows,
                    progress=part(read.judging),
                )
                progress = part(read.key_tokens)
                scored = score_tokens(root, key_tokens, store=rows, progress=progress)
                found += long_perplexities(scored, keys)
        stages.append(replace(stage, perplexities=tuple(found)))
    return stages


class ReadingWork(NamedTuple):
    """What is still to be read of whole texts with one candidate."""

    perplexity: float
    judging: float
    key_tokens: float


def reading_work(
    perplexity: PerplexityPlan | None,
    key_tokens: PerplexityPlan | None,
    trained_length: int,
    kept: Sequence[Samples],
) -> list[ReadingWork]:
    """Of every candidate; the first one judges. Raises ConfigError for what cannot be judged."""

    def left(plan: PerplexityPlan | None, rows: Samples) -> float:
        return 0.0 if plan is None else reading_left(plan, rows)

    judged = None if key_tokens is None else judge_plan(key_tokens, trained_length=trained_length)
    # Both read the same passes where both are of prefixes.
    shared = perplexity and key_tokens and perplexity.protocol == key_tokens.protocol
    return [
        ReadingWork(
            left(perplexity, rows),
            0.0 if number else left(judged, rows),
            0.0 if shared else left(key_tokens, rows),
        )
        for number, rows in enumerate(kept)
    ]


class _Parts:
    """Parts of the `total` work, one after another."""

    def __init__(self, tell: Tell, total: float) -> None:
        self.tell, self.total, self.before = tell, total, 0.0

    def of(self, label: str, work: float) -> Callable[[float], None]:
        """Turns the share of the next part into that of all the work."""
        before, self.before = self.before, self.before + work
        return lambda share: self.tell(
            label, (before + share * work) / self.total if self.total else 1.0
        )


@contextmanager
def _adapter_on(base: nn.Module, directory: str) -> Iterator[nn.Module]:
    """An adapter on the base; all that peft puts into the base is taken out again."""
    modules = dict(base.named_modules())
    attributes = {module: dict(module.__dict__) for module in modules.values()}
    parameters = {module: dict(module._parameters) for module in modules.values()}
    children = {module: dict(module._modules) for module in modules.values()}
    trainable = {parameter: parameter.requires_grad for parameter in base.parameters()}
    was_patched = patch_info(base) is not None
    try:
        yield load_pretrained(directory, base_model=base)
    finally:
        if patch_info(base) is not None and not was_patched:
            unpatch_model(base)
        for module in modules.values():
            module.__dict__.update(attributes[module])
            for name in module.__dict__.keys() - attributes[module].keys():
                del module.__dict__[name]
            module._parameters.update(parameters[module])
            module._modules.update(children[module])
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)
