"""The figures of a run as people read them: tables, targets reached or not, and the plot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.scenarios import Results

# What each figure is, its unit, and what one of the unit is in the figure's own.
_MEANING: Final = {
    "cpu": ("CPU", "µs", 1e-6),
    "core": ("of a core", "%", 0.01),
    "waited": ("others had its core", "%", 0.01),
    "delivered": ("tokens in time", "%", 0.01),
    "late_p50": ("late, p50", "ms", 1e-3),
    "late_p99": ("late, p99", "ms", 1e-3),
    "first_p50": ("first token, p50", "ms", 1e-3),
    "first_p99": ("first token, p99", "ms", 1e-3),
    "per_second": ("a second", "", 1.0),
    "bytes": ("memory a stream", "KiB", 1024.0),
    "import": ("import", "ms CPU", 1e-3),
    "import_in_worker": ("import, after the worker's own", "ms CPU", 1e-3),
    "start_cpu": ("from nothing to the first answer", "ms CPU", 1e-3),
    "first_request_cpu": ("the first answer alone", "ms CPU", 1e-3),
}


def table(results: Results) -> str:
    """One scenario: the medians, and each ratio to the seed's way in brackets."""
    targets = list(dict.fromkeys(target for figures in results.figures.values() for target in figures))
    lines = [f"\n{results.name}: {results.title}  ({results.verified} answers, each verified)"]
    lines.append(f"  {'':<34}" + "".join(f"{target:>18}" for target in targets))
    for what, figures in results.figures.items():
        meaning, unit, scale = _MEANING[what]
        line = f"  {f'{meaning} {unit}'.strip() if unit else meaning:<34}"
        for target in targets:
            if target not in figures:
                line += f"{'':>18}"
                continue
            cell = f"{results.median(what, target) / scale:,.4g}"
            if target not in ("seed", "direct") and "seed" in figures:
                cell += f" ({results.ratio(what, target, 'seed'):.2f})"
            line += f"{cell:>18}"
        lines.append(line)
    if results.busy:
        shares = ", ".join(
            f"{target} {results.busy_share(target):.0%}{' SATURATED' if results.saturated(target) else ''}"
            for target in results.busy
        )
        lines.append(f"  callers and model service used, of their core: {shares}")
    for target in results.overwhelmed:
        lines.append(f"  {target} was overwhelmed: it fell behind by more than a second")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Target:
    """What a scenario's figure has to be: `value` of it is at most `most`; `unit` and `scale` are for print."""

    scenario: str
    what: str
    value: Callable[[Results], float]
    most: float
    unit: str = ""


def _ratio(what: str) -> Callable[[Results], float]:
    return lambda results: results.ratio(what, "relay", "seed")


TARGETS: Final = (
    Target("paced-20", "CPU of a token, of the seed's", _ratio("cpu"), 1 / 4),
    Target("paced-50", "CPU of a token, of the seed's", _ratio("cpu"), 1 / 4),
    Target("paced-200", "CPU of a token, of the seed's", _ratio("cpu"), 1 / 4),
    Target("flood", "CPU of a token, of the seed's", _ratio("cpu"), 1 / 15),
    Target("requests", "CPU of a request, of the seed's", _ratio("cpu"), 2 / 3),
    Target("paced-200", "lateness p99", lambda it: it.median("late_p99", "relay") * 1000, 50, " ms"),
    Target("memory", "memory of an open stream", lambda it: it.median("bytes", "relay") / 1024, 100, " KiB"),
    Target("cold-start", "import, of the seed's", _ratio("import"), 1 / 2),
    Target("cold-start", "nothing to first answer, of the seed's", _ratio("start_cpu"), 1),
)


def verdicts(done: Sequence[Results]) -> str:
    """Each target that was measured: reached or not."""
    lines = ["\nTargets"]
    by_name = {results.name: results for results in done}
    for target in TARGETS:
        if (results := by_name.get(target.scenario)) is None:
            continue
        value = target.value(results)
        verdict = "reached" if value <= target.most else "NOT REACHED"
        if results.saturated("relay") or results.saturated("seed"):
            verdict += " (callers or model service saturated: says little)"
        figures = f"{value:.3g}{target.unit} (≤ {target.most:.3g}{target.unit})"
        lines.append(f"  {target.scenario:<12}{target.what:<42}{figures:<28}{verdict}")
    return "\n".join(lines)


_PLOTTED: Final = {
    "paced-20": "20 streams,\n50 tokens/s each",
    "paced-50": "50 streams,\n50 tokens/s each",
    "paced-200": "200 streams,\n50 tokens/s each",
    "bursts": "bursts of\n10 tokens",
    "flood": "flood",
    "requests": "a whole short\nrequest",
}
_COLOURS: Final = {"seed": "#b8b8c8", "copy": "#7fb7a6", "relay": "#2f5bd8", "beside": "#d88f2f"}
_NAMES: Final = {
    "seed": "chunk objects of the openai client",
    "relay": "this relay",
    "copy": "bytes copied, nothing read: the stack's limit",
    "beside": "the other state",
}


def plot(done: Sequence[Results], folder: Path) -> list[Path]:
    """The CPU time of each way, the seed's being 1; returns the files. Nothing without matplotlib or figures."""
    shown = [results for results in done if results.name in _PLOTTED and "cpu" in results.figures]
    try:
        import matplotlib as mpl
    except ImportError:
        print("matplotlib is not installed: no plot (tests/bench/requirements.txt)")
        return []
    if not shown:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "relay"  # the same figures give the same file
    targets = [name for name in _NAMES if name in shown[0].figures["cpu"]]
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(targets)
    for place, target in enumerate(targets):
        ratios = [results.ratio("cpu", target, "seed") for results in shown]
        positions = [at + (place - (len(targets) - 1) / 2) * width for at in range(len(shown))]
        bars = axes.bar(positions, ratios, width * 0.92, color=_COLOURS[target], label=_NAMES[target])
        labels = [
            f"{results.median('cpu', target) * 1e6:,.0f} µs" if target == "seed" else f"1/{1 / ratio:.2g}"
            for results, ratio in zip(shown, ratios, strict=True)
        ]
        axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_xticks(range(len(shown)), [_PLOTTED[results.name] for results in shown], fontsize=9)
    axes.set_ylabel("CPU time, the usual way's being 1")
    axes.set_ylim(0, 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=len(targets))
    written = []
    for kind in ("png", "svg"):
        path = folder / f"cpu.{kind}"
        figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        written.append(path)
    pyplot.close(figure)
    return written
