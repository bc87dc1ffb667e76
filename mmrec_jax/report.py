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


def _series(lines: list[dict], name: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[name] for line in lines]
