"""The tables that a person reads: aligned text, the same on a terminal and in a file."""

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.cells import STOCK, VARIANTS, Cell, Group, Measurement
from benchmarks.targets import Results, Verdict, ratio, spread

_TITLES = {
    "forward": "forward",
    "backward": "forward and backward, bias table frozen",
    "backward-table": "forward and backward, bias table trained",
}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (f"{text:>{width}}" for text, width in zip(row, widths, strict=True))
        lines.append("  ".join([f"{row[0]:<{len(first)}}", *others]).rstrip())
    return "\n".join(lines)


def show_ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratio of medians, and the least and greatest of a round."""
    each = [some / other for some, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return f"{ratio:.2f}× [{min(each):.2f}, {max(each):.2f}]"


def table(groups: Sequence[Group], results: Results) -> str:
    """All lengths of one model, dtype and direction."""
    model, dtype, direction, _ = groups[0]
    measured = [v for v in VARIANTS[model] if any(Cell(*g, v) in results for g in groups)]
    pairs = [(v, "ours") for v in measured if v in STOCK and "ours" in measured]
    pairs += [("ours", "limit")] if {"ours", "limit"} <= set(measured) else []
    header = ["tokens"]
    header += [f"{variant} s" for variant in measured] + [f"{variant} MB" for variant in measured]
    header += [f"{over}/{under} {q}" for over, under in pairs for q in ("time", "memory")]
    rows = [[*header, "rounds"]]
    rows += [_row(group, results, measured, pairs) for group in groups]
    title = f"{model} · {dtype} · {_TITLES[direction]}"
    return "\n".join([title, aligned(rows), *_problems(groups, results)])


def _row(
    group: Group, results: Results, measured: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> list[str]:
    found = [results.get(Cell(*group, variant)) for variant in measured]
    row = [f"{group[3]:,}", *map(_seconds, found), *map(_megabytes, found)]
    for over, under in pairs:
        row += [_time_ratio(results, group, over, under)]
        row += [_times(ratio(results, group, over, under, "memory"))]
    counts = {len(one.seconds) for one in found if one is not None and one.seconds}
    return [*row, "/".join(str(count) for count in sorted(counts, reverse=True)) or "–"]


def _seconds(found: Measurement | None) -> str:
    return "–" if found is None or found.time is None else f"{found.time:.3f}"


def _megabytes(found: Measurement | None) -> str:
    return "–" if found is None or found.memory is None else f"{found.memory:,.0f}"


def _time_ratio(results: Results, group: Group, over: str, under: str) -> str:
    value, extent = (
        ratio(results, group, over, under, "time"),
        spread(results, group, over, under),
    )
    return "–" if extent is None else f"{_times(value)} [{extent[0]:.2f}, {extent[1]:.2f}]"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×"


def _problems(groups: Iterable[Group], results: Results) -> list[str]:
    """Why entries are missing."""
    cells = [Cell(*group, variant) for group in groups for variant in VARIANTS[group[0]]]
    found = [results[cell] for cell in cells if cell in results]
    return [
        f"  {one.cell.variant} at {one.cell.length:,}: {one.problem}"
        for one in found
        if one.problem
    ]


def summary(verdicts: Iterable[Verdict]) -> str:
    """Every target, what was measured, and whether it is met."""
    rows = [["target", "dtype", "ratio", "bound", "measured", "at", ""]]
    for verdict in verdicts:
        target = verdict.target
        plus = "+" if target.and_longer else ""
        rows.append(
            [
                f"{target.model} {target.direction} {target.length:,}{plus}",
                verdict.dtype,
                f"{target.over}/{target.under} {target.quantity}",
                f"{'≥' if target.at_least else '≤'} {target.bound:g}×",
                _times(verdict.ratio),
                "–" if verdict.length is None else f"{verdict.length:,}",
                verdict.word,
            ]
        )
    return "Targets (the worst length where there are several)\n" + aligned(rows)
