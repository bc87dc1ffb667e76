"""Hooks: what happens after a training step. Each hook handles one concern.

After every step, the hooks are called in order as `hook(moment)`. A hook reads the moment and may
leave results in it for later hooks, so the order matters: numbers are fetched and checked before
anything is evaluated, and everything is evaluated and logged before anything is saved. `loop.py`
has the list.
"""

import math
import signal
import time
from collections.abc import Callable

import jax
import optax

from mmrec_jax.learning.evaluate import EvalResult
from mmrec_jax.learning.step import TrainState
from mmrec_jax.training.moment import Journal, Moment, Numbers, Throughput
from mmrec_jax.training.progress import EpochStats
from mmrec_jax.training.signals import Interrupted


class FetchNumbers:
    """Fetches a step's metrics while the next step runs, or immediately if anything is due."""

    def __init__(self):
        self.stop: int | None = None  # a stop signal that some process has received
        self._pending: Moment | None = None
        self._clock = time.perf_counter()

    def __call__(self, moment: Moment) -> None:
        ready = [self._pending, moment] if moment.due.anything else [self._pending]
        moment.numbers = [self._fetch(earlier) for earlier in ready if earlier is not None]
        self._pending = None if moment.due.anything else moment

    def restart_clock(self, moment: Moment) -> None:
        """The last hook: keeps the time spent on what was due out of the training time."""
        if moment.due.anything:
            self._clock = time.perf_counter()

    def _fetch(self, moment: Moment) -> Numbers:
        metrics = jax.device_get(moment.metrics)._asdict()
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self.stop = self.stop or int(metrics.pop("stop")) or None
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        return Numbers(moment.step, values, seconds, moment.data_seconds)


class CountSteps:
    """Adds each step to the statistics of its epoch."""

    def __init__(self, journal: Journal):
        self._progress = journal.progress

    def __call__(self, moment: Moment) -> None:
        for numbers in moment.numbers:
            loss = numbers.metrics["loss"]
            self._progress.stats.add(loss, numbers.seconds, numbers.data_seconds)


class LogSteps:
    """Logs each step to metrics.jsonl and displays it."""

    def __init__(self, journal: Journal, schedule: optax.Schedule, throughput: Throughput):
        self._journal, self._schedule, self._throughput = journal, schedule, throughput

    def __call__(self, moment: Moment) -> None:
        stats = self._journal.progress.stats
        for numbers in moment.numbers:
            rate = float(self._schedule(numbers.step))  # after this step
            speed = self._throughput.step_tokens / numbers.seconds
            share = self._throughput.utilization(numbers.seconds)
            self._journal.metrics.write(
                "train",
                numbers.step,
                epoch=stats.epoch,
                learning_rate=rate,
                tokens_per_second=speed,
                tokens_per_second_per_device=speed / self._throughput.devices,
                **({} if share is None else {"mfu": share}),
                data_seconds=numbers.data_seconds,
                **numbers.metrics,
            )
            seconds = stats.seconds / stats.count
            loss = numbers.metrics["loss"]
            speed = self._throughput.in_words(seconds)
            self._journal.display.step(numbers.step, loss, rate, seconds, speed)


class ReportScans:
    """Says when the sweeps of a parallel recurrence first fail, and at the end how often."""

    def __init__(self, journal: Journal, recurrences: int):
        """`recurrences`: how many are computed per step, forward and backward."""
        self._journal, self._recurrences = journal, recurrences
        self._steps = self._scans = 0

    def __call__(self, moment: Moment) -> None:
        say = self._journal.display.say
        for numbers in moment.numbers:
            scans = int(numbers.metrics.get("recurrence_scans", 0))
            if scans and not self._scans:
                say(
                    f"step {numbers.step}: the sweeps of {scans} of {self._recurrences} "
                    "recurrences did not converge, and the scan was used instead: not wrong, but "
                    "slower (said once)"
                )
            self._scans += scans
            self._steps += 1
        if self._journal.progress.finished and self._scans:
            share = self._scans / (self._steps * self._recurrences)
            say(f"the scan was needed for {self._scans:,} recurrences ({share:.2%} of all)")


class Evaluate:
    """Runs an evaluation when one is due."""

    def __init__(self, evaluate: Callable[[TrainState], EvalResult]):
        self._evaluate = evaluate

    def __call__(self, moment: Moment) -> None:
        if moment.due.evaluation:
            moment.evaluation = self._evaluate(moment.state)


class KeepBest:
    """Logs each evaluation and remembers the best one."""

    def __init__(self, journal: Journal):
        self._progress, self._metrics = journal.progress, journal.metrics

    def __call__(self, moment: Moment) -> None:
        if moment.evaluation is None:
            return
        self._metrics.write("evaluation", moment.step, **moment.evaluation.to_dict())
        loss, progress = moment.evaluation.loss, self._progress
        best = math.inf if progress.best_loss is None else progress.best_loss
        if math.isfinite(loss) and loss < best:
            moment.improvement = best - loss
            progress.best_loss, progress.best_step = loss, moment.step


class StopEarly:
    """Ends the run after `patience` evaluations in a row without improvement."""

    def __init__(self, journal: Journal, patience: int, min_improvement: float):
        self._progress, self._metrics = journal.progress, journal.metrics
        self._patience, self._least = patience, min_improvement

    def __call__(self, moment: Moment) -> None:
        if moment.evaluation is None:
            return
        progress = self._progress
        if moment.is_best and moment.improvement >= self._least:
            progress.evaluations_without_improvement = 0
            return
        progress.evaluations_without_improvement += 1
        if 0 < self._patience <= progress.evaluations_without_improvement:
            by = f" by {self._least:g}" if self._least else ""
            progress.finished = (
                f"stopped early: validation loss has not improved{by} in {self._patience} "
                f"evaluations; the best is {progress.best}"
            )
            self._metrics.write(
                "event", moment.step, event="stopped early", reason=progress.finished
            )


class EndEpoch:
    """Logs and displays an epoch when it ends."""

    def __init__(self, journal: Journal, step_tokens: int):
        self._journal, self._step_tokens = journal, step_tokens

    def __call__(self, moment: Moment) -> None:
        if not moment.due.end_of_epoch:
            return
        progress, result = self._journal.progress, moment.evaluation
        stats = progress.stats
        row = {
            "epoch": stats.epoch,
            "steps": stats.count,
            "first": stats.first,
            "last": stats.last,
            "mean": stats.mean,
            "min": stats.min,
            "max": stats.max,
            "change %": stats.change_percent,
            "val loss": result.loss,
            "perplexity": result.perplexity,
            "accuracy": result.accuracy,
            "tokens/s": stats.count * self._step_tokens / stats.seconds,
            "seconds": stats.seconds,
            "data wait %": 100 * stats.data_seconds / stats.seconds,
        }
        self._journal.display.epoch_row(row)
        self._journal.metrics.write("epoch", moment.step, **row)
        progress.stats = EpochStats(epoch=stats.epoch + 1)


class Finish:
    """Ends the run after its last step."""

    def __init__(self, journal: Journal, all_of: str):
        """`all_of`: what has then been done: "epochs", or for example "1,000 steps"."""
        self._progress, self._metrics, self._all_of = journal.progress, journal.metrics, all_of

    def __call__(self, moment: Moment) -> None:
        if moment.due.end_of_training:
            self._progress.finished = f"all {self._all_of} done"
            self._metrics.write(
                "event", moment.step, event="finished", reason=self._progress.finished
            )


class SaveCheckpoint:
    """Saves when a checkpoint is due, after a stop signal or a new best, and at the end."""

    def __init__(self, journal: Journal, as_saved: Callable[[TrainState], TrainState]):
        """`as_saved`: the state in the form that checkpoints have."""
        self._journal, self._as_saved = journal, as_saved

    def __call__(self, moment: Moment) -> None:
        progress, metrics, _, checkpoints = self._journal
        due = moment.due.checkpoint or moment.due.stop is not None or moment.is_best
        if due or progress.finished:
            metrics.flush()  # no checkpoint is ahead of the metrics
            loss = moment.evaluation.loss if moment.is_best else None
            state = self._as_saved(moment.state)
            checkpoints.save(moment.step, state, progress.to_dict(), loss)


class StopOnSignal:
    """Ends the process after SIGTERM or Ctrl-C, once the checkpoint is saved."""

    def __init__(self, journal: Journal):
        self._journal = journal

    def __call__(self, moment: Moment) -> None:
        """Raises Interrupted after a stop signal, unless the run has finished."""
        progress, metrics, display, checkpoints = self._journal
        if moment.due.stop is None or progress.finished:
            return
        checkpoints.wait()
        name = signal.Signals(moment.due.stop).name
        metrics.write("event", moment.step, event="interrupted", reason=name)
        display.say(f"{name}: saved step {moment.step}; run the same command again to resume")
        raise Interrupted(moment.due.stop)
