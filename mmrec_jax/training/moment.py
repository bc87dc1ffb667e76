"""What the hooks of training see after a step, and where they record what they find."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from mmrec_jax.learning.evaluate import EvalResult
from mmrec_jax.learning.step import StepMetrics, TrainState
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.metrics_writer import MetricsWriter, NoMetrics
from mmrec_jax.training.display import Display
from mmrec_jax.training.progress import Progress


class Due(NamedTuple):
    """What has to happen after a step, decided once so that all hooks agree."""

    evaluation: bool = False
    end_of_epoch: bool = False
    checkpoint: bool = False
    end_of_training: bool = False
    stop: int | None = None  # the stop signal received, if any

    @property
    def anything(self) -> bool:
        return any(self)


class Timetable(NamedTuple):
    """When evaluations, ends of epochs and checkpoints are due, in steps."""

    total_steps: int
    steps_per_epoch: int
    eval_every: int  # 0: only after each epoch
    checkpoint_every: int

    def due(self, step: int, stop: int | None) -> Due:
        """What has to happen after `step` steps; `stop` is the stop signal received, if any."""
        last = step == self.total_steps
        end_of_epoch = last or step % self.steps_per_epoch == 0
        in_between = self.eval_every > 0 and step % self.eval_every == 0
        return Due(
            evaluation=end_of_epoch or in_between,
            end_of_epoch=end_of_epoch,
            checkpoint=step % self.checkpoint_every == 0,
            end_of_training=last,
            stop=stop,
        )


class Throughput(NamedTuple):
    """What the speed of a run is derived from."""

    step_tokens: int
    devices: int = 1
    step_flops: float | None = None  # of the model; None if they are not known
    peak: float | None = None  # FLOP/s that all devices could do; None if it is not known

    def utilization(self, seconds: float) -> float | None:
        """Model FLOP/s of a step that took this long, as a share of the peak."""
        if self.step_flops is None or self.peak is None:
            return None
        return self.step_flops / seconds / self.peak

    def in_words(self, seconds: float) -> str:
        """The speed of steps that take this long."""
        tokens, share = self.step_tokens / seconds, self.utilization(seconds)
        words = f"{tokens:,.0f} tokens/s"
        if self.devices > 1:
            words += f" ({tokens / self.devices:,.0f} per device)"
        return words if share is None else f"{words}  {share:.1%} MFU"


class Numbers(NamedTuple):
    """The metrics of a step, fetched from the device."""

    step: int
    metrics: dict[str, float]  # fields of StepMetrics, without `stop`
    seconds: float  # since the previous numbers, without evaluations and checkpoints
    data_seconds: float  # the part spent waiting for the batch


@dataclasses.dataclass
class Moment:
    """A step that has been dispatched, and what the hooks have found since."""

    step: int  # steps done
    state: TrainState
    due: Due
    metrics: StepMetrics | None = None  # on the device
    data_seconds: float = 0.0  # spent waiting for the batch
    numbers: list[Numbers] = dataclasses.field(default_factory=list)
    evaluation: EvalResult | None = None
    improvement: float = 0.0  # of the evaluation over the previous best, nats; inf: the first

    @property
    def is_best(self) -> bool:
        """Whether the evaluation is the best so far."""
        return self.improvement > 0


class Journal(NamedTuple):
    """Where the hooks of a run record what they find."""

    progress: Progress
    metrics: MetricsWriter | NoMetrics
    display: Display
    checkpoints: Checkpoints


Hook = Callable[[Moment], None]
