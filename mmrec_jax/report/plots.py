"""Plots of evaluations, memory and benchmarks; those of the report page are in drawings.py."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from mmrec_jax.data.sources.recall import TASKS, chance


def draw_losses_by_position(buckets: list[dict], seq_len: int, workdir: Path) -> Path:
    """Draws the loss by tokens of context into loss_by_position.png in the workdir.

    Args:
        buckets: `by_position` of eval.json.
        seq_len: tokens of a window, after which memory that is not carried starts fresh.
        workdir: of the run.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = [_short(bucket["first"]) for bucket in buckets]
    axes.plot(names, [bucket["loss"] for bucket in buckets], "o-", label="carried memory")
    axes.plot(
        names,
        [bucket["loss_not_carried"] for bucket in buckets],
        "s--",
        label=f"fresh memory every {seq_len} tokens",
    )
    axes.set(xlabel="tokens of context (bucket start)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    path = workdir / "loss_by_position.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_curves(curves: dict, xlabel: str, path: Path) -> Path:
    """Draws validation loss against cost.

    Args:
        curves: costs and losses of each run, by name.
        xlabel: label of the costs.
        path: the PNG file.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, (costs, losses)), marker in zip(curves.items(), itertools.cycle("osD^vPX")):
        axes.plot(costs, losses, f"{marker}-", label=name, markersize=4, linewidth=1)
    lowest = min(min(losses) for _, losses in curves.values())
    axes.set(xlabel=xlabel, ylabel="validation loss (nats per token)", xlim=(0, None))
    axes.set_ylim(lowest - 0.02, lowest + 0.4)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_recall(results: list, path: Path) -> Path:
    """Draws the share of correct answers by length of the text, one panel per task.

    Args:
        results: `recall.RecallResult`s.
        path: the PNG file.
    """
    figure, panels = plt.subplots(
        1, len(TASKS), figsize=(4 * len(TASKS), 4), sharey=True, layout="constrained"
    )
    for axes, task in zip(panels, TASKS, strict=True):
        for result, marker in zip(results, itertools.cycle("osD^vPX")):
            lengths = [multiple * result.trained_length for multiple in result.multiples]
            name = Path(result.workdir).name
            axes.plot(lengths, result.accuracy[task], f"{marker}-", label=name, markersize=5)
        axes.axhline(chance(task), color="gray", linestyle=":", label="chance")
        axes.set(title=task, xlabel="tokens", xscale="log", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of correct answers")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_half_lives(half_life: np.ndarray, path: Path) -> Path:
    """Draws the half-life of every channel of the recurrence, sorted, one line per layer.

    Args:
        half_life: tokens, [layers, D] (`inspection.Inside`).
        path: the PNG file.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for layer, values in enumerate(half_life):
        axes.plot(np.sort(values), label=f"layer {layer}")
    axes.set(xlabel="channels (sorted)", ylabel="half-life (tokens)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_saliency(
    tokens: Sequence[str], saliency: np.ndarray, kept: np.ndarray, path: Path, columns: int = 90
) -> Path:
    """Draws a text colored by saliency, with frames around what long-term memory keeps.

    Args:
        tokens: the text of each token.
        saliency: s of one layer and head, [T].
        kept: which tokens are in long-term memory at the end, bool [T].
        path: the PNG file.
        columns: characters per line.
    """
    rows, row, column = [], 0, 0
    for token in tokens:
        shown = token.replace("\n", "↵").replace("\t", " ")
        if column and column + len(shown) > columns:
            row, column = row + 1, 0
        rows.append((row, column, shown))
        column += len(shown)
        if token.endswith("\n"):
            row, column = row + 1, 0
    figure, axes = plt.subplots(
        figsize=(0.105 * columns + 1, 0.24 * (row + 1) + 1), layout="constrained"
    )
    colors = matplotlib.cm.ScalarMappable(cmap="YlGnBu")
    colors.set_array(saliency)
    colors.autoscale()
    for (y, x, shown), s, is_kept in zip(rows, saliency, kept, strict=True):
        red, green, blue, _ = color = colors.to_rgba(s)
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.add_patch(plt.Rectangle((x, y), len(shown), 1, facecolor=color, linewidth=0))
        for offset, character in enumerate(shown):
            axes.text(
                x + offset + 0.5,
                y + 0.5,
                character,
                color="white" if dark else "black",
                family="monospace",
                fontsize=9,
                ha="center",
                va="center_baseline",
                parse_math=False,
            )
        if is_kept:
            frame = (x + 0.04, y + 0.06), len(shown) - 0.08, 0.88
            axes.add_patch(plt.Rectangle(*frame, fill=False, edgecolor="crimson", linewidth=1.6))
    axes.set(xlim=(0, columns), ylim=(row + 1, 0))
    axes.axis("off")
    figure.colorbar(
        colors,
        ax=axes,
        location="bottom",
        shrink=0.4,
        aspect=40,
        label="saliency (framed: in long-term memory at the end)",
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _short(number: int) -> str:
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if number >= size:
            return f"{number // size}{letter}"
    return str(number)
