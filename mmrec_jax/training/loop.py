"""The training loop: steps, evaluations, checkpoints, and a clean end whatever happens."""

import contextlib
import dataclasses
import math
import signal
import time
from pathlib import Path

import jax
import optax

from mmrec_jax import workdir as workdirs
from mmrec_jax.config import Config
from mmrec_jax.data.dataset import Dataset, load_dataset
from mmrec_jax.data.stream import Host, prefetched, training_batches
from mmrec_jax.errors import UserError
from mmrec_jax.evaluation import EvalResult, evaluate
from mmrec_jax.plan import count_parameters
from mmrec_jax.provenance import provenance
from mmrec_jax.report.page import write_report
from mmrec_jax.training.checkpoints import Checkpoints, is_better
from mmrec_jax.training.display import SHOWN_EPOCHS, Display
from mmrec_jax.training.growing import Source, compare, grown_state, old_parameters, open_source
from mmrec_jax.training.metrics import EpochStats, MetricsWriter, read_metrics
from mmrec_jax.training.optimizer import learning_rate_schedule, make_optimizer, slower_where
from mmrec_jax.training.profiling import Profiler
from mmrec_jax.training.signals import Interrupted, StopSignals
from mmrec_jax.training.step import init_train_state, make_eval_step, make_train_step


@dataclasses.dataclass
class Progress:
    """What of a run is not in its training state. Saved with each checkpoint."""

    stats: EpochStats
    best_loss: float | None = None
    best_step: int = 0
    evaluations_without_improvement: int = 0
    finished: str = ""  # why the run has ended; empty while it has not

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Progress":
        return cls(**{**values, "stats": EpochStats(**values["stats"])})


def train(config: Config, path: Path, report: bool = False, profile: bool = False) -> None:
    """Trains a model in a workdir, from where an earlier call left off if there was one.

    Args:
        config: of the run.
        path: the workdir.
        report: whether to write report.html when training has ended.
        profile: whether to record a few steps as a trace, in the folder `profile` of the workdir.

    Raises:
        UserError: bad input, a workdir of another run, a loss that is not finite, a full disk.
        Interrupted: SIGTERM or Ctrl-C, after the state was saved.
    """
    if jax.process_count() > 1:
        raise UserError("training runs on one host so far; the data is ready for several")
    workdirs.check_config(path, config)
    dataset = load_dataset(config)
    source = None
    if config.init_from and not workdirs.has_checkpoints(path):
        source = open_source(config, dataset.tokenizer)
    trainer = Trainer(config, path, dataset, source, profile)
    workdirs.prepare(path, config, dataset)
    with workdirs.locked(path), StopSignals() as signals:
        checkpoints = Checkpoints(path / "checkpoints", config.train.keep_checkpoints)
        ended = trainer.run(checkpoints, signals)
    if ended and report:
        print(f"report: {write_report(path)}")


class Trainer:
    """One run of the loop."""

    def __init__(
        self,
        config: Config,
        path: Path,
        dataset: Dataset,
        source: Source | None = None,
        profile: bool = False,
    ):
        """`source`: what the model grows from where there is no checkpoint yet; None: nothing."""
        self.config, self.path, self.dataset, self.source = config, path, dataset, source
        self.profile = profile
        train = config.train
        host = Host(jax.process_index(), jax.process_count())
        self.batches = training_batches(dataset.train, config, host)
        self.step_tokens = train.step_tokens
        self.total_steps = train.fixed_steps or train.num_epochs * self.batches.steps_per_epoch
        self.schedule = learning_rate_schedule(train, self.total_steps)
        self.optimizer = make_optimizer(train, self.schedule)
        if config.init_from and config.growth.old_rate != 1:
            self.optimizer = optax.chain(
                self.optimizer, slower_where(old_parameters(config), config.growth.old_rate)
            )
        self.eval_step = make_eval_step(config.model)

    def run(self, checkpoints: Checkpoints, signals: StopSignals) -> bool:
        """Trains to the end; false where that had been reached before."""
        self.checkpoints, self.signals = checkpoints, signals
        self.progress = Progress(EpochStats())
        state = self._start()
        restored = self.checkpoints.restore_newest(state, warn=print)
        if restored is not None:
            state, progress = restored
            self.progress = Progress.from_dict(progress)
        first_step = int(state.step)
        if self.progress.finished:
            print(
                f"{self.path} has finished at step {first_step} ({self.progress.finished}): "
                f"nothing to do. Best validation loss {_number(self.progress.best_loss)} at step "
                f"{self.progress.best_step}. To train anew, name another --workdir."
            )
            return False

        self._introduce(state, first_step)
        train_step = make_train_step(self.config, self.optimizer)
        train_step = train_step.lower(state, self.batches[first_step]).compile()
        self.profiler = Profiler(self.path / "profile" if self.profile else None, first_step)
        self.metrics = MetricsWriter(self.path, -1 if restored is None else first_step)
        epochs = read_metrics(self.path, "epoch")
        self.display = Display(
            self.total_steps, first_step, self.config.train.log_every, epochs[-SHOWN_EPOCHS:]
        )
        try:
            self._log_start(first_step)
            if self.source is not None:
                self._evaluate_start(state)
            self._loop(train_step, state, first_step)
            self.checkpoints.wait()
            self.metrics.flush()
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; put it right and run the same "
                "command again"
            ) from error
        finally:
            self.display.close()
            self.profiler.close()
            with contextlib.suppress(OSError):  # the disk is still full
                self.metrics.close()
        self._conclude()
        return True

    def _start(self):
        """The state before the first step."""
        if self.source is not None:
            return grown_state(self.source, self.config, self.dataset.tokenizer, self.optimizer)
        return init_train_state(self.config, self.optimizer, jax.random.key(self.config.train.seed))

    def _evaluate_start(self, state) -> None:
        """Shows what growth has kept, and saves it: the source is not needed from here on."""
        start = compare(self.source, self.config, state.params, self.dataset)
        best_loss = start.loss if self._judge(0, start) else None
        self.metrics.flush()
        self.checkpoints.save(0, state, self.progress.to_dict(), best_loss)

    def _log_start(self, first_step: int) -> None:
        self.metrics.write(
            "event",
            first_step,
            event="resumed" if first_step else "started",
            time=time.time(),
            total_steps=self.total_steps,
            steps_per_epoch=self.batches.steps_per_epoch,
            parameters=sum(count_parameters(self.config.model).values()),
            **provenance(),
        )

    def _introduce(self, state, first_step: int) -> None:
        parameters = sum(x.size for x in jax.tree.leaves(state.params))
        train = self.config.train
        print(
            f"{self.config.name}: {parameters:,} parameters on {jax.devices()[0].device_kind} "
            f"(jax {jax.__version__})"
        )
        length = f"{train.num_epochs} epochs"
        if train.fixed_steps:
            length = f"{self.total_steps / self.batches.steps_per_epoch:.2f} epochs"
        print(
            f"{self.step_tokens * self.batches.steps_per_epoch:,} training tokens an epoch, "
            f"{self.dataset.tokenizer.vocab_size:,} of {self.config.model.vocab_size:,} token ids "
            f"used; {self.total_steps:,} steps of {train.batch_size} x {train.seq_len} tokens in "
            f"{length}"
        )
        where = f"resuming from step {first_step} of" if first_step else "training in"
        print(f"{where} {self.path}", flush=True)

    def _loop(self, train_step, state, first_step: int) -> None:
        """Runs the steps. Metrics of step n are fetched while step n + 1 runs."""
        train, pending = self.config.train, None
        self._clock = time.perf_counter()
        batches = prefetched(self.batches, first_step, self.total_steps)
        for step in range(first_step + 1, self.total_steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            data_seconds = time.perf_counter() - asked
            self.profiler.before(step - 1)
            state, metrics = train_step(state, batch)
            for line in self.profiler.after(step, metrics):
                self.display.say(line)
            if pending is not None:
                self._record(*pending)
            pending = (step, metrics, data_seconds)
            last = step == self.total_steps
            epoch_ends = last or step % self.batches.steps_per_epoch == 0
            every = train.eval_every
            evaluation_due = epoch_ends or (every and step % every == 0)
            checkpoint_due = step % train.checkpoint_every == 0
            stop = self.signals.received
            if not (evaluation_due or checkpoint_due or stop):
                continue

            self._record(*pending)  # nothing is evaluated or saved before it is known to be finite
            pending = None
            best_loss = None
            if evaluation_due:
                result = evaluate(
                    self.eval_step,
                    state.params,
                    self.dataset.validation,
                    self.config,
                    train.carry_memory,
                )
                best_loss = result.loss if self._judge(step, result) else None
                if epoch_ends:
                    self._end_epoch(step, result)
            if last:
                done = f"{self.total_steps:,} steps" if train.fixed_steps else "epochs"
                self.progress.finished = f"all {done} done"
                self.metrics.write("event", step, event="finished", reason=self.progress.finished)
            finished = self.progress.finished
            if checkpoint_due or best_loss is not None or finished or stop:
                self.metrics.flush()
                self.checkpoints.save(step, state, self.progress.to_dict(), best_loss)
            if finished:
                return
            if stop:
                self.checkpoints.wait()
                self.metrics.write(
                    "event", step, event="interrupted", reason=signal.Signals(stop).name
                )
                self.display.say(
                    f"{signal.Signals(stop).name}: saved step {step}; the same command goes on "
                    "from there"
                )
                raise Interrupted(stop)
            self._clock = time.perf_counter()

    def _record(self, step: int, metrics, data_seconds: float) -> None:
        """Fetches the metrics of a step, checks and writes them."""
        values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self._diverged(step, values)
        rate = float(self.schedule(step))
        tokens = self.step_tokens
        self.progress.stats.add(values["loss"])
        self.progress.stats.seconds += seconds
        self.progress.stats.data_seconds += data_seconds
        self.metrics.write(
            "train",
            step,
            epoch=self.progress.stats.epoch,
            learning_rate=rate,  # after this step
            tokens_per_second=tokens / seconds,
            data_seconds=data_seconds,  # of waiting for the batch
            **values,
        )
        stats = self.progress.stats
        self.display.step(step, values["loss"], rate, tokens, stats.seconds / stats.count)

    def _diverged(self, step: int, values: dict) -> None:
        name = "loss" if not math.isfinite(values["loss"]) else "gradient norm"
        self.metrics.write("event", step, event="diverged", reason=f"the {name} is not finite")
        self.metrics.flush()
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        good = (
            f"the last good checkpoint is step {steps[-1]}" if steps else "there is no checkpoint"
        )
        raise UserError(
            f"the {name} of step {step} is not finite; {good}. Try a lower train.learning_rate, a "
            "longer train.warmup_steps or a smaller train.clip_norm, in a new --workdir"
        )

    def _judge(self, step: int, result: EvalResult) -> bool:
        """Takes note of an evaluation; whether it is the best so far."""
        self.metrics.write("evaluation", step, **result.to_dict())
        progress, train = self.progress, self.config.train
        before, best = progress.best_loss, is_better(result.loss, progress.best_loss)
        if best:
            progress.best_loss, progress.best_step = result.loss, step
        if best and (before is None or before - result.loss >= train.min_improvement):
            progress.evaluations_without_improvement = 0
            return best
        progress.evaluations_without_improvement += 1
        if train.patience and progress.evaluations_without_improvement >= train.patience:
            much = f" by {train.min_improvement:g}" if train.min_improvement else ""
            progress.finished = (
                f"stopped early: in {train.patience} evaluations validation loss was not improved "
                f"on{much}; best is {_number(progress.best_loss)} of step {progress.best_step}"
            )
            self.metrics.write("event", step, event="stopped early", reason=progress.finished)
        return best

    def _end_epoch(self, step: int, result: EvalResult) -> None:
        stats = self.progress.stats
        tokens = stats.count * self.step_tokens
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
            "tokens/s": tokens / stats.seconds,
            "seconds": stats.seconds,
            "data wait %": 100 * stats.data_seconds / stats.seconds,
        }
        self.display.epoch_row(row)
        self.metrics.write("epoch", step, **row)
        self.progress.stats = EpochStats(epoch=stats.epoch + 1)

    def _conclude(self) -> None:
        progress = self.progress
        print(f"finished: {progress.finished}")
        print(f"best validation loss {_number(progress.best_loss)} at step {progress.best_step}")
        print(f"evaluate it with: python eval.py --workdir={self.path}")


def _number(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.6f}"
