"""Pictures of the report page, each drawn for light and dark and for wide and narrow pages."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmrec_jax.report.run_log import RunLog

BINS = 800  # of a curve: with more steps, the mean and range of each bin are drawn

_INK = {"light": "#1d2129", "dark": "#e4e6eb"}
_PAPER = {"light": "#ffffff", "dark": "#16181d"}
_CYCLE = {
    "light": ["#2563a8", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#be185d"],
    "dark": ["#6fb1f5", "#fb923c", "#5fd38a", "#b99cf8", "#e5c04b", "#f58ac0"],
}


class Picture(NamedTuple):
    """A picture in both themes, for wide and for narrow pages."""

    alt: str  # description, also used as the caption
    light: Path
    dark: Path
    light_narrow: Path
    dark_narrow: Path


def draw(
    folder: Path, name: str, alt: str, plot: Callable[[Figure, bool], None], height: float = 3.4
) -> Picture:
    """Draws a figure as <name>.png and <name>-dark.png, and each again as -narrow.png.

    Args:
        folder: where the files go.
        name: stem of the file names.
        alt: what the picture shows.
        plot: draws on a figure; its second argument is whether the figure is narrow.
        height: of the figure, in inches.
    """
    paths = {}
    for theme, narrow in itertools.product(("light", "dark"), (False, True)):
        ink, paper = _INK[theme], _PAPER[theme]
        style = {
            "figure.facecolor": paper,
            "axes.facecolor": paper,
            "savefig.facecolor": paper,
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "axes.prop_cycle": matplotlib.cycler(color=_CYCLE[theme]),
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "font.size": 11,
        }
        with plt.rc_context(style):
            width = 4.0 if narrow else 7.2
            figure = plt.figure(figsize=(width, height), layout="constrained")
            plot(figure, narrow)
            key = f"{theme}_narrow" if narrow else theme
            suffix = "-dark" * (theme == "dark") + "-narrow" * narrow
            paths[key] = folder / f"{name}{suffix}.png"
            figure.savefig(paths[key], dpi=180 if narrow else 110)
            plt.close(figure)
    return Picture(alt, **paths)


def plot_losses(figure: Figure, log: RunLog) -> None:
    """Plots training and validation loss by step; marks the best evaluation and events."""
    axes = figure.add_subplot()
    _curve(axes, log.train["step"], log.train["loss"], label="training", color="C0")
    finite = [line for line in log.evaluations if np.isfinite(line["loss"])]
    if finite:
        steps, losses = [line["step"] for line in finite], [line["loss"] for line in finite]
        marker = "o-" if len(finite) <= 60 else "-"
        axes.plot(steps, losses, marker, color="C1", label="validation", markersize=4)
        best = int(np.argmin(losses))
        axes.plot(steps[best], losses[best], "*", color="C1", markersize=13)
        axes.annotate(
            f"best {losses[best]:.4f}",
            (steps[best], losses[best]),
            xytext=(-6, 12),
            textcoords="offset points",
            ha="right",
        )
    _mark_events(axes, log)
    _limit(axes, log)
    axes.set_ylabel("loss (nats per token)")
    _steps_below(axes)
    axes.legend()


def _limit(axes: Axes, log: RunLog) -> None:
    """Limits the y axis so that spikes and the first steps do not flatten the curves."""
    losses = log.train["loss"][np.isfinite(log.train["loss"])]
    if len(losses) > 20:
        low = min([losses.min(), *(line["loss"] for line in log.evaluations)])
        high = min(losses.max(), np.quantile(losses, 0.9) * 1.6)
        room = 0.12 * (high - low) or 1.0
        axes.set_ylim(max(low - room, 0) if low >= 0 else low - room, high + room)


_MARKS = {
    "resumed": ("C2", ":", "resumed"),
    "interrupted": ("C2", ":", None),
    "stopped early": ("C4", "--", "stopped early"),
    "diverged": ("C5", "-", "diverged"),
}


def _mark_events(axes: Axes, log: RunLog) -> None:
    named = set()
    for event in log.events:
        if event["event"] in _MARKS:
            color, line, label = _MARKS[event["event"]]
            axes.axvline(
                event["step"],
                color=color,
                linestyle=line,
                linewidth=1.2,
                label=None if label in named else label,
            )
            named.add(label)


def plot_series(figure: Figure, log: RunLog, narrow: bool) -> None:
    """Plots learning rate, gradient norm, tokens per second and data wait by step."""
    panels = figure.subplots(*((4, 1) if narrow else (2, 2)), sharex=True).ravel()
    steps = log.train["step"]
    seconds = log.train["data_seconds"] * 1e3
    for axes, name, values in zip(
        panels,
        ("learning rate", "gradient norm", "tokens per second", "data wait (ms per step)"),
        (
            log.train["learning_rate"],
            log.train["grad_norm"],
            log.train["tokens_per_second"],
            seconds,
        ),
        strict=True,
    ):
        _curve(axes, steps, values, color="C0")
        finite = values[np.isfinite(values)]
        if len(finite) > 20 and name != "learning rate":
            axes.set_ylim(0, np.quantile(finite, 0.99) * 1.15 or 1)
        axes.set_title(name, fontsize=10, loc="left")
        axes.tick_params(labelsize=9)
    panels[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panels[2].yaxis.set_major_formatter(_thousands)
    for axes in panels[-1:] if narrow else panels[2:]:
        _steps_below(axes, most=4)


def plot_positions(figure: Figure, buckets: list[dict]) -> None:
    """Plots loss by tokens of context; each bucket has `first` and `loss`."""
    axes = figure.add_subplot()
    names = [f"{bucket['first']:,}" for bucket in buckets]
    axes.plot(names, [bucket["loss"] for bucket in buckets], "o-")
    axes.set(xlabel="tokens of context (bucket start)", ylabel="loss (nats per token)")


def plot_half_lives(figure: Figure, half_life: np.ndarray) -> None:
    """Plots the half-lives of the recurrence's channels, sorted; tokens, [layers, D]."""
    axes = figure.add_subplot()
    for layer, values in enumerate(half_life):
        axes.plot(np.sort(values), label=f"layer {layer}")
    axes.set(xlabel="channels (sorted)", ylabel="half-life (tokens)", yscale="log")
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.legend(ncols=2 if len(half_life) > 6 else 1, fontsize=9)


def plot_comparison(figure: Figure, logs: dict[str, RunLog]) -> None:
    """Plots validation losses of several runs, with their training losses behind them."""
    axes = figure.add_subplot()
    for color, (name, log) in zip(itertools.cycle(f"C{i}" for i in range(6)), logs.items()):
        _curve(axes, log.train["step"], log.train["loss"], color=color, alpha=0.3)
        finite = [line for line in log.evaluations if np.isfinite(line["loss"])]
        steps, losses = [line["step"] for line in finite], [line["loss"] for line in finite]
        axes.plot(steps, losses, "o-", color=color, label=name, markersize=4)
    every = list(logs.values())
    losses = np.concatenate([log.train["loss"] for log in every])
    evaluations = [line for log in every for line in log.evaluations]
    _limit(axes, every[0]._replace(train={"loss": losses}, evaluations=evaluations))
    axes.set_ylabel("loss (nats per token)")
    _steps_below(axes)
    axes.legend(fontsize=9, title="validation (training: faint)", title_fontsize=9)


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, alpha: float = 1.0, **style) -> None:
    """Plots a line; with more than BINS points, the mean of each bin over its range."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) > BINS:
        edges = np.linspace(0, len(steps), BINS + 1).astype(int)[:-1]
        counts = np.diff([*edges, len(steps)])
        low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
        steps = np.add.reduceat(steps, edges) / counts
        values = np.add.reduceat(values, edges) / counts
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.2 * alpha, linewidth=0)
    marker = "o" if len(steps) == 1 else None
    axes.plot(steps, values, marker=marker, linewidth=1, alpha=alpha, **style)


def _steps_below(axes: Axes, most: int | str = "auto") -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(_thousands)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(most, integer=True))


@matplotlib.ticker.FuncFormatter
def _thousands(value, _):
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
