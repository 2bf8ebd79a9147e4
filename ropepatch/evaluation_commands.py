"""`ropepatch eval` and `ropepatch compare`: the first is the second without candidates."""

import argparse
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ropepatch import __version__
from ropepatch.adapters.pretrained import pretrained_model, trained_length
from ropepatch.checkpoint.opening import open_to_measure, open_tokenizer
from ropepatch.corpus import Document, RetrievalVocabulary, load_documents
from ropepatch.description import require_length
from ropepatch.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    RopepatchWarning,
    UnsupportedModelError,
)
from ropepatch.evals import Evaluation, Plan, plan_evaluation, print_table, write_report
from ropepatch.evals.candidates import Candidate, Tell, measure_candidates, reading_work
from ropepatch.evals.ledger import dtype_in_words, protocol_settings, reason_for_dtype
from ropepatch.evals.perplexity_plan import PerplexityPlan, plan_perplexity
from ropepatch.evals.perplexity_table import print_perplexities
from ropepatch.evals.pilot import Pilot, run_pilot
from ropepatch.evals.results import write_results
from ropepatch.evals.runner import work_left
from ropepatch.evals.samples import Samples, SampleStore, read_manifest
from ropepatch.evals.sampling import (
    PILOT,
    TIMED,
    Counts,
    counts_for_time,
    counts_for_width,
    parse_time,
    require_width,
)
from ropepatch.evals.verdict import judge, not_finite
from ropepatch.evals.verdict_table import print_verdicts
from ropepatch.evals.windows import window_rooms
from ropepatch.evaluation_arguments import (
    parse_factors,
    parse_lengths,
    parse_names,
    parse_questions,
    require_directory,
)
from ropepatch.evaluation_candidates import fingerprint, named_candidates
from ropepatch.methods.registry import replaces
from ropepatch.patch import mechanism_of, patch_info
from ropepatch.terminal import ShareProgress, silence_transformers

_MULTIPLES = (1, 2, 4, 8)  #: of the trained length, measured where --lengths does not say
_TARGETS = 64  #: tokens at the end of each window that are scored at every length
_PREFIXES = "yarn-truncate"  #: the protocol whose lengths all come from one pass
_DOCUMENTS = 10  #: of which a named protocol measures the perplexity, as YaRN's curves are of ten


def run_evaluation(options: argparse.Namespace) -> None:
    """Measure the base and every candidate on the same text and prompts; print, and write it all."""
    run = _Run(options)
    lock = FileLock(run.directory / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another process measures in {run.directory}; wait for it, or choose another --output"
        ) from None
    with lock:
        run.run()


class _Run:
    """One base, its candidates, and what is read of them. Everything is checked before it is run."""

    def __init__(self, options: argparse.Namespace) -> None:
        silence_transformers()
        self.options = options
        self.seconds = None if options.budget is None else parse_time(options.budget)
        if options.ci is not None:
            require_width(options.ci)
        self.name: str = options.models[0]
        if options.factors and not options.methods:
            raise ConfigError("--factors are of --methods; give --methods yarn,ntk, too")
        if options.comparing and len(options.models) == 1 and not options.methods:
            raise ConfigError(
                f"there is nothing to compare {self.name} to; give another checkpoint or adapter, or "
                "--methods yarn,ntk"
            )
        self.command = "compare" if len(options.models) > 1 or options.methods else "eval"
        self.directory: Path = options.output or Path("out", self.command, Path(self.name).name)
        require_directory(self.directory)
        self.tokenizer = open_tokenizer(self.name)
        self.base = open_to_measure(self.name)
        self.root = pretrained_model(self.base)
        if reason_for_dtype(self.root):
            print(f"computed in {dtype_in_words(self.root)}")
        self.trained = require_length(self.base, options.original_max_position_embeddings)
        self.candidates = self._candidates()
        self.documents = load_documents(options.data, "held_out")
        self.tasks = self._tasks()
        self.lengths = self._lengths()
        self.perplexity = self._perplexity_plan("ppl", self.options.protocol or _PREFIXES)
        self.key_tokens = self._perplexity_plan("longppl", _PREFIXES)
        self._check_positions()
        if options.ci is not None and self._read():
            read = min(_DOCUMENTS, len(self.documents))
            print(
                f"--ci chooses windows and prompts; perplexity is of {read} documents all the same"
            )
        self.pilot: Pilot | None = None

    def run(self) -> None:
        """Measure, judge, print, write."""
        stages, plan = self._measure()
        verdicts = [judge(stages[0], stage) for stage in stages[1:]]
        results = write_results(stages, verdicts, self.directory)
        if verdicts:
            print_verdicts(stages, verdicts)
        else:
            print_table(stages)
        for stage in stages:
            if stage.broken_lengths:
                print(f"{stage.label}: {not_finite(stage.broken_lengths)}")
        print_perplexities(stages)
        for what, reason in plan.not_asked.items():
            print(f"not asked: {what}: {reason}")
        print(results)
        differences = [verdict.differences for verdict in verdicts]
        title = f"{stages[0].label}, {'compared' if verdicts else 'measured'}"
        try:
            print(write_report(stages, differences, self.directory, title=title, verdicts=verdicts))
        except MissingExtraError as error:  # all else is measured, printed and written
            warnings.warn(str(error), RopepatchWarning, stacklevel=1)

    def _measure(self) -> tuple[list[Evaluation], Plan]:
        with ShareProgress(f"measure {self.name}") as progress:

            def tell(label: str, share: float) -> None:
                progress.title = label
                progress(share)

            counts = self._counts(tell)
            plan = self._plan(counts)
            store = SampleStore(self.directory, self._manifest(plan, counts))
            stages = measure_candidates(
                self.base,
                self.candidates,
                plan,
                open_to_measure,
                perplexity=self.perplexity,
                key_tokens=self.key_tokens,
                tell=tell,
                samples=lambda label: self._samples(store.candidate(label), plan),
            )
        return stages, plan

    def _candidates(self) -> list[Candidate]:
        options = self.options
        methods = parse_names(options.methods)
        factors = parse_factors(options.factors or "4")
        return named_candidates(
            options.models, self.base, self.tokenizer, methods, factors, self.trained
        )

    def _tasks(self) -> list[str]:
        """Those that were asked for; else key–value retrieval, or needles without its tokens."""
        if self.options.tasks:
            return parse_names(self.options.tasks)
        try:
            RetrievalVocabulary.from_tokenizer(self.tokenizer)
        except DataError:
            return ["needle"]
        return ["kv"]

    def _lengths(self) -> list[int]:
        """Ascending. Lengths that no document holds are left out, and that is said."""
        asked = parse_lengths(self.options.lengths) or [self.trained * n for n in _MULTIPLES]
        self.rooms = window_rooms(self.documents, self.tokenizer, sorted(set(asked)), _TARGETS)
        held = [length for length, rooms in self.rooms.items() if any(rooms)]
        missing = [length for length, rooms in self.rooms.items() if not any(rooms)]
        if missing:
            lengths = " or ".join(map(str, missing))
            print(f"missing: no document of {self.options.data} has {lengths} tokens")
        return held or missing

    def _perplexity_plan(self, task: str, protocol: str) -> PerplexityPlan | None:
        """None where the task is not asked for; it is then none of the prompts' tasks."""
        if task not in self.tasks:
            if task == "ppl" and (self.options.protocol or self.options.stride):
                raise ConfigError("--protocol and --stride are of the task ppl; add it to --tasks")
            return None
        if self.root.config.is_encoder_decoder:
            raise ConfigError(
                f"{type(self.root).__name__} reads a text's beginning to predict a few tokens, which has "
                f"no perplexity over whole windows; leave {task} out of --tasks"
            )
        self.tasks.remove(task)
        return plan_perplexity(
            self.tokenizer,
            self.documents[:_DOCUMENTS],
            protocol=protocol,
            lengths=self.lengths,
            stride=self.options.stride if task == "ppl" else None,
        )

    def _read(self) -> list[PerplexityPlan]:
        return [plan for plan in (self.perplexity, self.key_tokens) if plan is not None]

    def _check_positions(self) -> None:
        """A table of positions ends where it ends, whatever is asked for."""
        info = patch_info(self.base)
        try:
            ends = mechanism_of(self.root) == "absolute"
        except UnsupportedModelError:
            ends = True
        rows = trained_length(self.root) or self.trained
        if ends and (info is None or not replaces(info.method)) and self.lengths[-1] > rows:
            raise ConfigError(
                f"{self.name} has positions for {rows} tokens, but {self.lengths[-1]} are asked for; "
                f"give --lengths up to {rows}"
            )

    def _counts(self, tell: Tell) -> Counts:
        """As given, or from a pilot, or as an earlier part of this run fixed them."""
        options = self.options
        if options.ci is None and options.budget is None:
            return Counts(options.windows, options.prompts)
        fixed = (read_manifest(self.directory) or {}).get("measured", {})
        if fixed.get("sampling") == self._sampling():
            return Counts(fixed["windows"], fixed["prompts"])
        room = sum(self.rooms[self.lengths[-1]])
        few = PILOT if self.seconds is None else TIMED
        plan = self._plan(Counts(min(few, room), few))
        started = time.perf_counter()
        self.pilot = run_pilot(self.base, self.candidates, plan, open_to_measure, tell)
        taken = time.perf_counter() - started
        if self.seconds is None:
            return counts_for_width(self.pilot.stages, options.ci, room)
        nothing = Samples("pilot")
        kept = [nothing] * len(self.candidates)
        reading = reading_work(self.perplexity, self.key_tokens, self.trained, kept)
        work = len(kept) * work_left(plan, nothing)
        once = taken * (1 + sum(map(sum, reading)) / work)
        return counts_for_time(self.seconds, taken / min(few, room), once, room)

    def _samples(self, rows: Samples, plan: Plan) -> Samples:
        return rows if self.pilot is None else self.pilot.hand_on(plan, rows)

    def _sampling(self) -> dict[str, float | str | None]:
        return {"ci": self.options.ci, "budget": self.options.budget}

    def _plan(self, counts: Counts) -> Plan:
        return plan_evaluation(
            self.tokenizer,
            self.documents,
            lengths=self.lengths,
            trained_length=self.trained,
            targets=_TARGETS,
            windows=counts.windows,
            prompts=counts.prompts if self.tasks else 0,
            bos=self.options.bos,
            seed=self.options.seed,
            tasks=self.tasks,
            mode=self.options.mode,
            questions=parse_questions(self.options.questions),
            lead="\n# " if self.options.data == "stdlib" else "\n",
            haystack=self._haystack(),
        )

    def _haystack(self) -> list[Document]:
        """Where a pilot chooses the counts, prompts are the same for any of them."""
        if self.options.ci is None and self.options.budget is None:
            return []
        pairs = zip(self.documents, self.rooms[self.lengths[-1]], strict=True)
        return [document for document, room in pairs if room]

    def _manifest(self, plan: Plan, counts: Counts) -> dict[str, Any]:
        measured = {
            **protocol_settings(plan.protocol, plan.windows),
            **asdict(counts),
            "sampling": self._sampling(),
            "perplexity": [each.digest() for each in self._read()],
        }
        return {
            "measured": measured,
            "models": {each.label: fingerprint(each, self.name) for each in self.candidates},
            "dtype": str(self.root.dtype),
            "ropepatch": __version__,
            "protocol": plan.digest(),
        }
