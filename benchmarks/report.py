"""Measures how long the report of a made-up run of a million steps takes, and how large it is.

python -m benchmarks.report
python -m benchmarks.report --steps=100000
"""

import math
import random
import tempfile
import time
from pathlib import Path

from absl import flags

from mmrec_jax.commands import cli

_STEPS = flags.DEFINE_integer("steps", 1_000_000, "Training steps of the run.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to keep the run in; by default, none.")


def main():
    from configs import tiny
    from mmrec_jax import checksums
    from mmrec_jax.config import from_mapping
    from mmrec_jax.report.page import write_report

    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(_WORKDIR.value or folder)
        workdir.mkdir(exist_ok=True)
        (workdir / "config.json").write_text(from_mapping(tiny.get_config()).to_json())
        with (workdir / "metrics.jsonl").open("w") as file:
            for line in made_up(_STEPS.value):
                file.write(checksums.sealed(line))
        size = (workdir / "metrics.jsonl").stat().st_size
        print(f"{_STEPS.value:,} steps, metrics.jsonl of {size / 1e6:,.0f} MB")
        start = time.perf_counter()
        page = write_report(workdir)
        seconds = time.perf_counter() - start
        print(f"report written in {seconds:.1f} s, {page.stat().st_size / 1e6:.2f} MB")


def made_up(steps: int):
    """Lines as a run writes them: an evaluation every 1,000 steps, an epoch every 10,000."""
    from mmrec_jax.learning.evaluate import EvalResult

    rng = random.Random(0)
    yield {"kind": "event", "step": 0, "event": "started", "total_steps": steps}
    for step in range(1, steps + 1):
        loss = 1.2 + 7 * math.exp(-step / steps * 12) + rng.gauss(0, 0.05)
        yield {
            "kind": "train",
            "step": step,
            "epoch": 1 + step // 10_000,
            "learning_rate": 3e-4 * (1 - step / steps),
            "tokens_per_second": 7_000 + rng.gauss(0, 200),
            "data_seconds": 1e-4 * rng.random(),
            "loss": loss,
            "saliency_loss": 0.1,
            "uboo_loss": 0.0,
            "grad_norm": 1 + rng.random(),
        }
        if step % 1_000 == 0 or step == steps:
            result = EvalResult(loss + 0.05, 0.6, 1.7, 6_512, 18_000.0)
            yield {"kind": "evaluation", "step": step, **result.to_dict()}
        if step % 10_000 == 0:
            epoch = dict.fromkeys(("first", "last", "mean", "min", "max", "val loss"), loss)
            epoch |= {"epoch": step // 10_000, "steps": 10_000, "change %": -1.0, "seconds": 700.0}
            epoch |= {"perplexity": math.exp(loss), "accuracy": 0.6, "tokens/s": 7_000.0}
            yield {"kind": "epoch", "step": step, **epoch}


if __name__ == "__main__":
    cli.run(main)
