"""Pictures of a run."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mmrec_jax.training.metrics import read_metrics


def draw_losses(workdir: Path) -> Path:
    """Draws training and validation loss over steps as loss.png in the workdir."""
    train, evaluations = read_metrics(workdir, "train"), read_metrics(workdir, "evaluation")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(*_series(train, "loss"), label="training", linewidth=1)
    if evaluations:
        steps, losses = _series(evaluations, "loss")
        axes.plot(steps, losses, "o-", label="validation")
        best = min(range(len(losses)), key=losses.__getitem__)
        axes.annotate(
            f"best {losses[best]:.4f}",
            (steps[best], losses[best]),
            xytext=(0, 14),
            textcoords="offset points",
            ha="right",
        )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    path = workdir / "loss.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_losses_by_position(buckets: list[dict], seq_len: int, workdir: Path) -> Path:
    """Draws the loss by tokens of context as loss_by_position.png in the workdir.

    Args:
        buckets: `by_position` of eval.json.
        seq_len: how many tokens are read at once where memory is not carried.
        workdir: the folder of the run.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    names = [_short(bucket["first"]) for bucket in buckets]
    axes.plot(names, [bucket["loss"] for bucket in buckets], "o-", label="memory carried")
    axes.plot(
        names,
        [bucket["loss_not_carried"] for bucket in buckets],
        "s--",
        label=f"memory fresh every {seq_len} tokens",
    )
    axes.set(xlabel="tokens of context, from", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    path = workdir / "loss_by_position.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _short(number: int) -> str:
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if number >= size:
            return f"{number // size}{letter}"
    return str(number)


def _series(lines: list[dict], name: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[name] for line in lines]
