"""Plots of runs, of their models, and of benchmarks: each function plots on a figure.

drawing.py makes pictures of them.
"""

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mmrec_jax.data.sources.recall import TASKS, chance
from mmrec_jax.learning.breakdown import Breakdown, Bucket
from mmrec_jax.report.drawing import shorten
from mmrec_jax.report.run_log import RunLog

FEWEST_TOKENS = 100  # in a bucket that is plotted by distance
NEVER = -2.5  # where the loss of tokens that have not occurred before is plotted
BINS = 800  # of a curve: with more steps, the mean and range of each bin are drawn
_MARKERS = "osD^vPX*"


def plot_losses(figure: Figure, log: RunLog) -> None:
    """Plots training and validation loss by step; marks the best evaluation and events."""
    axes = figure.add_subplot()
    _curve(axes, log.train["step"], log.train["loss"], label="training", color="C0")
    steps, losses = _validation(log)
    if losses:
        marker = "o-" if len(losses) <= 60 else "-"
        axes.plot(steps, losses, marker, color="C1", label="validation", markersize=4)
        best = steps[int(np.argmin(losses))], min(losses)
        axes.plot(*best, "*", color="C1", markersize=13)
        near = {"xytext": (-6, 12), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"best {best[1]:.4f}", best, **near)
    for name, (color, line, label) in _MARKS.items():
        for index, event in enumerate(event for event in log.events if event["event"] == name):
            label = None if index else label
            axes.axvline(event["step"], color=color, linestyle=line, linewidth=1.2, label=label)
    _set_up_losses(axes, [log])
    axes.legend()


_MARKS = {
    "resumed": ("C2", ":", "resumed"),
    "interrupted": ("C2", ":", None),
    "stopped early": ("C4", "--", "stopped early"),
    "diverged": ("C5", "-", "diverged"),
}


def plot_comparison(figure: Figure, logs: dict[str, RunLog]) -> None:
    """Plots validation losses of several runs, with their training losses behind them."""
    axes = figure.add_subplot()
    for index, (name, log) in enumerate(logs.items()):
        color = f"C{index % 8}"
        _curve(axes, log.train["step"], log.train["loss"], color=color, alpha=0.3)
        axes.plot(*_validation(log), "o-", color=color, label=name, markersize=4)
    _set_up_losses(axes, logs.values())
    axes.legend(fontsize=9, title="validation (training: faint)", title_fontsize=9)


def _validation(log: RunLog) -> tuple[list[int], list[float]]:
    """Steps and losses of the evaluations whose loss is finite."""
    finite = [line for line in log.evaluations if np.isfinite(line["loss"])]
    return [line["step"] for line in finite], [line["loss"] for line in finite]


def _set_up_losses(axes: Axes, logs: Collection[RunLog]) -> None:
    """Labels the axes; limits y so that spikes and the first steps do not flatten the curves."""
    losses = np.concatenate([log.train["loss"] for log in logs])
    losses = losses[np.isfinite(losses)]
    if len(losses) > 20:
        low = min([losses.min(), *(loss for log in logs for loss in _validation(log)[1])])
        high = min(losses.max(), np.quantile(losses, 0.9) * 1.6)
        room = 0.12 * (high - low) or 1.0
        axes.set_ylim(max(low - room, 0) if low >= 0 else low - room, high + room)
    axes.set_ylabel("loss (nats per token)")
    _set_up_steps(axes)


def plot_series(figure: Figure, log: RunLog) -> None:
    """Plots learning rate, gradient norm, tokens per second and data wait by step."""
    narrow = figure.get_figwidth() < 6
    panels = figure.subplots(*((4, 1) if narrow else (2, 2)), sharex=True).ravel()
    series = {
        "learning rate": log.train["learning_rate"],
        "gradient norm": log.train["grad_norm"],
        "tokens per second": log.train["tokens_per_second"],
        "data wait (ms per step)": log.train["data_seconds"] * 1e3,
    }
    for axes, (name, values) in zip(panels, series.items(), strict=True):
        _curve(axes, log.train["step"], values, color="C0")
        finite = values[np.isfinite(values)]
        if len(finite) > 20 and name != "learning rate":
            axes.set_ylim(0, np.quantile(finite, 0.99) * 1.15 or 1)
        axes.set_title(name, fontsize=10, loc="left")
        axes.tick_params(labelsize=9)
    panels[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    panels[2].yaxis.set_major_formatter(_shortened)
    for axes in panels[-1:] if narrow else panels[2:]:
        _set_up_steps(axes, most=4)


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


def _set_up_steps(axes: Axes, most: int | str = "auto") -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(_shortened)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(most, integer=True))


@matplotlib.ticker.FuncFormatter
def _shortened(value, _):
    return shorten(value)


def plot_positions(
    figure: Figure, carried: Sequence[Bucket], fresh: Sequence[Bucket] = (), seq_len: int = 0
) -> None:
    """Plots the loss by tokens of context, with carried memory and perhaps with fresh memory too.

    `seq_len` is the number of tokens after which memory that is not carried starts fresh.
    """
    axes = figure.add_subplot()
    names = [shorten(bucket.first, kilo=1024) for bucket in carried]
    axes.plot(names, [bucket.loss for bucket in carried], "o-", label="carried memory")
    if fresh:
        losses = [bucket.loss for bucket in fresh]
        axes.plot(names, losses, "s--", label=f"fresh memory every {seq_len} tokens")
        axes.legend()
    axes.set(xlabel="tokens of context (bucket start)", ylabel="loss (nats per token)")


def plot_distances(
    figure: Figure, curves: dict[str, Breakdown], reaches: dict[str, int | None]
) -> None:
    """Plots the loss by distance to the last occurrence of the token, and of the pair.

    Below it, if there are several curves: how each differs from the first. Buckets of fewer than
    100 tokens are left out.

    Args:
        curves: what each model loses, by name. Its intervals are shaded.
        reaches: the distance of a vertical line in the color of a name; None: no line.
    """
    first, *others = curves.values()
    stacked = not others and figure.get_figwidth() < 6
    if others or stacked:
        figure.set_figheight(1.6 * figure.get_figheight())
    titles = {"token": "the same token", "pair": "the same token after the same token"}
    rows, columns = (2, 1) if stacked else (2, 2) if others else (1, 2)
    panels = figure.subplots(rows, columns, sharex=True, sharey="row", squeeze=False)
    panels = panels.T if stacked else panels  # a row of losses, and one of differences
    for of_kind, (kind, title) in zip(panels.T, titles.items(), strict=True):
        of_kind[0].set_title(title, loc="left", fontsize=10)
        if not stacked or kind == "pair":
            of_kind[-1].set_xlabel("tokens since it last occurred")
        if stacked or kind == "token":
            of_kind[0].set_ylabel("loss (nats per token)")
        for index, (name, breakdown) in enumerate(curves.items()):
            style = {"color": f"C{index % 8}", "marker": _MARKERS[index % len(_MARKERS)]}
            _plot_buckets(of_kind[0], breakdown.buckets(kind), name, style)
            if index:
                _plot_buckets(of_kind[1], breakdown.buckets(kind, minus=first), name, style)
            for axes in of_kind if reaches.get(name) else ():
                axes.axvline(np.log2(reaches[name]), color=style["color"], linestyle=":")
    buckets = [of for kind in titles for of in first.buckets(kind) if of.tokens >= FEWEST_TOKENS]
    right = int(np.log2(max((of.last or 1 for of in buckets), default=1))) + 1
    panels[0, 0].set_xlim(NEVER - 0.7, right + 0.2)
    panels[0, 0].set_xticks([NEVER, *range(0, right + 1, -(-right // 7))])
    panels[0, 0].xaxis.set_major_formatter(_shortened_power)
    if others:
        panels[1, 0].set_ylabel(f"difference to {next(iter(curves))}")
        for axes in panels[1]:
            axes.axhline(0, color="C0", linewidth=1)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    if any(reaches.values()):
        handles.append(Line2D([], [], color="gray", linestyle=":"))
        labels.append("S + C + M")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)


def _plot_buckets(axes: Axes, buckets: Sequence[Bucket], name: str, style: dict) -> None:
    """Plots losses at the middle of their buckets, on an axis of log2, or alone at NEVER."""
    buckets = [bucket for bucket in buckets if bucket.tokens >= FEWEST_TOKENS]
    known = [bucket for bucket in buckets if bucket.first is not None]
    never = [bucket for bucket in buckets if bucket.first is None]
    for part, label in ((known, name), (never, "")):
        places = [NEVER if of.first is None else np.log2(of.first) + 0.5 for of in part]
        axes.plot(places, [of.loss for of in part], label=label or None, markersize=4, **style)
        low, high = np.array([of.interval or (np.nan, np.nan) for of in part]).reshape(-1, 2).T
        if part is known:
            axes.fill_between(places, low, high, color=style["color"], alpha=0.2, linewidth=0)
        else:
            axes.vlines(places, low, high, color=style["color"], alpha=0.4, linewidth=3)


@matplotlib.ticker.FuncFormatter
def _shortened_power(value, _):
    return "never" if value == NEVER else shorten(2**value, kilo=1024)


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


def plot_curves(figure: Figure, curves: dict, xlabel: str) -> None:
    """Plots validation loss against cost: `curves` has costs and losses of each run, by name."""
    axes = figure.add_subplot()
    for (name, (costs, losses)), marker in zip(curves.items(), itertools.cycle(_MARKERS)):
        axes.plot(costs, losses, f"{marker}-", label=name, markersize=4, linewidth=1)
    lowest = min(min(losses) for _, losses in curves.values())
    axes.set(xlabel=xlabel, ylabel="validation loss (nats per token)", xlim=(0, None))
    axes.set_ylim(lowest - 0.02, lowest + 0.4)
    axes.legend()


def plot_recall(figure: Figure, results: list) -> None:
    """Plots the share of correct answers by length of the text (`recall.RecallResult`s)."""
    figure.set_size_inches(4 * len(TASKS), 4)
    panels = figure.subplots(1, len(TASKS), sharey=True)
    for axes, task in zip(panels, TASKS, strict=True):
        for result, marker in zip(results, itertools.cycle(_MARKERS)):
            lengths = [multiple * result.trained_length for multiple in result.multiples]
            name = Path(result.workdir).name
            axes.plot(lengths, result.accuracy[task], f"{marker}-", label=name, markersize=5)
        axes.axhline(chance(task), color="gray", linestyle=":", label="chance")
        axes.set(title=task, xlabel="tokens", xscale="log", ylim=(-0.03, 1.03))
    panels[0].set_ylabel("share of correct answers")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def plot_saliency(
    figure: Figure, tokens: Sequence[str], saliency: np.ndarray, kept: np.ndarray, columns: int = 90
) -> None:
    """Shows a text colored by saliency, with frames around what long-term memory keeps.

    Args:
        figure: is resized to fit the text.
        tokens: the text of each token.
        saliency: s of one layer and head, [T].
        kept: which tokens are in long-term memory at the end, bool [T].
        columns: characters per line.
    """
    places, row, column = [], 0, 0
    for token in tokens:
        shown = token.replace("\n", "↵").replace("\t", " ")
        if column and column + len(shown) > columns:
            row, column = row + 1, 0
        places.append((row, column, shown))
        column += len(shown)
        if token.endswith("\n"):
            row, column = row + 1, 0
    figure.set_size_inches(0.105 * columns + 1, 0.24 * (row + 1) + 1)
    axes = figure.add_subplot()
    colors = matplotlib.cm.ScalarMappable(cmap="YlGnBu")
    colors.set_array(saliency)
    colors.autoscale()
    style = {"family": "monospace", "fontsize": 9, "ha": "center", "va": "center_baseline"}
    for (y, x, shown), s, is_kept in zip(places, saliency, kept, strict=True):
        red, green, blue, _ = color = colors.to_rgba(s)
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
        axes.add_patch(Rectangle((x, y), len(shown), 1, facecolor=color, linewidth=0))
        for offset, character in enumerate(shown, start=x):
            axes.text(offset + 0.5, y + 0.5, character, color=ink, parse_math=False, **style)
        if is_kept:
            frame = (x + 0.04, y + 0.06), len(shown) - 0.08, 0.88
            axes.add_patch(Rectangle(*frame, fill=False, edgecolor="crimson", linewidth=1.6))
    axes.set(xlim=(0, columns), ylim=(row + 1, 0))
    axes.axis("off")
    label = "saliency (framed: in long-term memory at the end)"
    figure.colorbar(colors, ax=axes, location="bottom", shrink=0.4, aspect=40, label=label)
