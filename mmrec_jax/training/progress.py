"""The progress of a run, saved next to the training state in every checkpoint."""

import dataclasses
import math


@dataclasses.dataclass
class EpochStats:
    """Statistics of the training losses of the current epoch."""

    epoch: int = 1
    count: int = 0
    first: float = math.nan
    last: float = math.nan
    total: float = 0.0
    min: float = math.inf
    max: float = -math.inf
    seconds: float = 0.0  # spent training, without evaluation
    data_seconds: float = 0.0  # the part spent waiting for batches

    def add(self, loss: float, seconds: float, data_seconds: float) -> None:
        """Adds one step."""
        if self.count == 0:
            self.first = loss
        self.count += 1
        self.last = loss
        self.total += loss
        self.min, self.max = min(self.min, loss), max(self.max, loss)
        self.seconds += seconds
        self.data_seconds += data_seconds

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def change_percent(self) -> float:
        """Change from the first loss of the epoch to the last, in percent; 0 from a loss of 0."""
        return 100 * (self.last - self.first) / self.first if self.first else 0.0


@dataclasses.dataclass
class Progress:
    """How far a run has come, and its best evaluation."""

    stats: EpochStats = dataclasses.field(default_factory=EpochStats)
    best_loss: float | None = None  # lowest validation loss, nats per token
    best_step: int = 0
    evaluations_without_improvement: int = 0
    rewinds: int = 0  # times that training has gone back to a checkpoint (train.on_not_finite)
    finished: str = ""  # why the run has finished; empty until then

    @property
    def best(self) -> str:
        """The best loss and its step, in words."""
        if self.best_loss is None:
            return "none (no evaluation gave a finite loss)"
        return f"{self.best_loss:.6f} at step {self.best_step}"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Progress":
        return cls(**{**values, "stats": EpochStats(**values["stats"])})
