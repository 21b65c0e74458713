"""The report of a run: tables, whether the targets are met, and the plot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.scenarios import Results

# The name of each metric, its unit for print, and the size of this unit in that of the figures.
_METRICS: Final = {
    "cpu": ("CPU time", "µs", 1e-6),
    "core": ("share of a core", "%", 0.01),
    "waited": ("waited for its core", "%", 0.01),
    "delivered": ("tokens in time", "%", 0.01),
    "delay_p50": ("delay, p50", "ms", 1e-3),
    "delay_p99": ("delay, p99", "ms", 1e-3),
    "first_p50": ("first token, p50", "ms", 1e-3),
    "first_p99": ("first token, p99", "ms", 1e-3),
    "per_second": ("per second", "", 1.0),
    "bytes": ("memory per stream", "KiB", 1024.0),
    "import": ("import", "ms CPU", 1e-3),
    "import_in_worker": ("import in the worker", "ms CPU", 1e-3),
    "start_cpu": ("start and first answer", "ms CPU", 1e-3),
    "first_request_cpu": ("first answer", "ms CPU", 1e-3),
}


def table(results: Results) -> str:
    """One scenario: the medians, and in brackets the ratio to the usual way."""
    targets = list(dict.fromkeys(target for figures in results.figures.values() for target in figures))
    lines = [f"\n{results.name}: {results.title}  ({results.verified} answers, all verified)"]
    lines.append(f"  {'':<34}" + "".join(f"{target:>18}" for target in targets))
    for metric, figures in results.figures.items():
        label, unit, scale = _METRICS[metric]
        line = f"  {f'{label}, {unit}' if unit else label:<34}"
        for target in targets:
            if target not in figures:
                line += f"{'':>18}"
                continue
            cell = f"{results.median(metric, target) / scale:,.4g}"
            if target not in ("usual way", "direct") and "usual way" in figures:
                cell += f" ({results.ratio(metric, target, 'usual way'):.2f})"
            line += f"{cell:>18}"
        lines.append(line)
    if results.busy:
        shares = ", ".join(
            f"{target} {results.busy_share(target):.0%}{' SATURATED' if results.saturated(target) else ''}"
            for target in results.busy
        )
        lines.append(f"  share of their core that load generator and model service used: {shares}")
    for target in results.overwhelmed:
        lines.append(f"  {target} was overwhelmed: it was more than a second late")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Target:
    """A target: `value` of the scenario's results is at most `most`; `name` and `unit` are for print."""

    scenario: str
    name: str
    value: Callable[[Results], float]
    most: float
    unit: str = ""


def _ratio(metric: str) -> Callable[[Results], float]:
    return lambda results: results.ratio(metric, "relay", "usual way")


TARGETS: Final = (
    Target("paced-20", "CPU time per token, of the usual way's", _ratio("cpu"), 1 / 4),
    Target("paced-50", "CPU time per token, of the usual way's", _ratio("cpu"), 1 / 4),
    Target("paced-200", "CPU time per token, of the usual way's", _ratio("cpu"), 1 / 4),
    Target("flood", "CPU time per token, of the usual way's", _ratio("cpu"), 1 / 15),
    Target("requests", "CPU time per request, of the usual way's", _ratio("cpu"), 2 / 3),
    Target("paced-200", "delay, p99", lambda it: it.median("delay_p99", "relay") * 1000, 50, " ms"),
    Target("memory", "memory per open stream", lambda it: it.median("bytes", "relay") / 1024, 100, " KiB"),
    Target("cold-start", "import, of the usual way's", _ratio("import"), 1 / 2),
    Target("cold-start", "start and first answer, of the usual way's", _ratio("start_cpu"), 1),
)


def verdicts(done: Sequence[Results]) -> str:
    """Each target that was measured, and whether it is met."""
    lines = ["\nTargets"]
    by_name = {results.name: results for results in done}
    for target in TARGETS:
        if (results := by_name.get(target.scenario)) is None:
            continue
        value = target.value(results)
        verdict = "met" if value <= target.most else "NOT MET"
        if results.saturated("relay") or results.saturated("usual way"):
            verdict += " (not meaningful: load generator and model service were saturated)"
        figures = f"{value:.3g}{target.unit} (≤ {target.most:.3g}{target.unit})"
        lines.append(f"  {target.scenario:<12}{target.name:<45}{figures:<28}{verdict}")
    return "\n".join(lines)


_PLOTTED: Final = {
    "paced-20": "20 streams,\n50 tokens/s each",
    "paced-50": "50 streams,\n50 tokens/s each",
    "paced-200": "200 streams,\n50 tokens/s each",
    "bursts": "bursts of\n10 tokens",
    "flood": "flood",
    "requests": "one short\nrequest",
}
_COLOURS: Final = {"usual way": "#b8b8c8", "byte copy": "#7fb7a6", "relay": "#2f5bd8", "other version": "#d88f2f"}
_LABELS: Final = {
    "usual way": "usual way (openai client's chunk objects)",
    "relay": "relay",
    "byte copy": "byte copy (the platform's limit)",
    "other version": "other version of the relay",
}


def plot(done: Sequence[Results], folder: Path) -> list[Path]:
    """Plot the CPU time of each target, relative to the usual way; returns the files, none without matplotlib."""
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

    mpl.rcParams["svg.hashsalt"] = "relay"  # so that the same figures give the same file
    targets = [name for name in _LABELS if name in shown[0].figures["cpu"]]
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(targets)
    for place, target in enumerate(targets):
        ratios = [results.ratio("cpu", target, "usual way") for results in shown]
        positions = [at + (place - (len(targets) - 1) / 2) * width for at in range(len(shown))]
        bars = axes.bar(positions, ratios, width * 0.92, color=_COLOURS[target], label=_LABELS[target])
        labels = [
            f"{results.median('cpu', target) * 1e6:,.0f} µs" if target == "usual way" else f"1/{1 / ratio:.2g}"
            for results, ratio in zip(shown, ratios, strict=True)
        ]
        axes.bar_label(bars, labels, padding=2, fontsize=8)
    axes.set_xticks(range(len(shown)), [_PLOTTED[results.name] for results in shown], fontsize=9)
    axes.set_ylabel("CPU time relative to the usual way")
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
