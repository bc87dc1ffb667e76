"""Hooks that notice when training goes wrong: losses that are not finite, and spikes."""

import collections
import math

import numpy as np

from mmrec_jax.errors import UserError
from mmrec_jax.training.moment import Journal, Moment


class Rewind(Exception):
    """Training is to go back to the last checkpoint; the message says why."""


class HandleNotFinite:
    """Does what `train.on_not_finite` says when a loss or gradient is not finite.

    That is before anything is saved. A step that was skipped is counted and logged by none of the
    hooks that follow.
    """

    def __init__(self, journal: Journal, policy: str, most_skipped: int):
        """`most_skipped`: steps in a row that may be skipped."""
        self._journal, self._policy, self._most_skipped = journal, policy, most_skipped
        self._skipped = 0  # in a row

    def __call__(self, moment: Moment) -> None:
        """Raises Rewind, or UserError where training cannot go on."""
        good = []
        for numbers in moment.numbers:
            values = {"loss": "loss", "grad_norm": "gradient norm"}
            bad = [name for key, name in values.items() if not math.isfinite(numbers.metrics[key])]
            self._skipped = self._skipped + 1 if bad else 0
            if bad:
                self._handle(numbers.step, bad[0])
            else:
                good.append(numbers)
        moment.numbers = good

    def _handle(self, step: int, name: str) -> None:
        _, metrics, display, checkpoints = self._journal
        reason, what = f"the {name} is not finite", f"the {name} of step {step} is not finite"
        if self._policy == "skip" and self._skipped <= self._most_skipped:
            metrics.write("event", step, event="skipped", reason=reason)
            display.say(f"{what}: skipped; {_how_to_see_text(self._journal, step)}")
            return
        metrics.write("event", step, event="diverged", reason=reason)
        metrics.flush()
        checkpoints.wait()
        steps = checkpoints.steps()
        if self._policy == "rewind" and steps:
            display.say(_how_to_see_text(self._journal, step))
            raise Rewind(what)
        last = f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint exists"
        where = ", in a new --workdir" if steps else ""
        raise UserError(
            f"{what}; {last}. Try a lower train.learning_rate, a longer train.warmup_steps or a "
            f"smaller train.clip_norm{where}; {_how_to_see_text(self._journal, step)}"
        )


class ReportSpikes:
    """Says when a loss is far above those of the steps before it.

    That is, farther above their 99% quantile than that is above their median.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._losses = collections.deque(maxlen=200)

    def __call__(self, moment: Moment) -> None:
        for numbers in moment.numbers:
            loss = numbers.metrics["loss"]
            if len(self._losses) >= 100:
                median, high = np.quantile(self._losses, (0.5, 0.99)).tolist()
                if loss > high + (high - median):
                    values = {"loss": loss, "median": median, "quantile": high}
                    self._journal.metrics.write("event", numbers.step, event="spike", **values)
                    self._journal.display.say(
                        f"step {numbers.step}: loss {loss:.4f} is a spike (the median of the "
                        f"{len(self._losses)} steps before is {median:.4f}); "
                        + _how_to_see_text(self._journal, numbers.step)
                    )
            self._losses.append(loss)


def _how_to_see_text(journal: Journal, step: int) -> str:
    path, rewinds = journal.checkpoints.directory.parent, journal.progress.rewinds
    again = f" --rewinds={rewinds}" if rewinds else ""
    return (
        f"to see its text: python -m mmrec_jax.training.batch --workdir={path} --step={step}{again}"
    )
