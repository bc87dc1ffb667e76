"""The training loop: get a batch, take a step, call the hooks."""

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from mmrec_jax.commands import processes
from mmrec_jax.config import Config
from mmrec_jax.data.batches import prefetched
from mmrec_jax.errors import UserError
from mmrec_jax.learning.evaluate import EvalResult, evaluate, make_eval_step
from mmrec_jax.learning.sharding import in_words, place_batch, place_signal, shardings
from mmrec_jax.learning.step import TrainState, make_train_step
from mmrec_jax.model.interface import ModelFunctions
from mmrec_jax.model.params import Params
from mmrec_jax.runs import workdir as workdirs
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.metrics import last_lines
from mmrec_jax.runs.metrics_writer import MetricsWriter, NoMetrics
from mmrec_jax.runs.provenance import provenance
from mmrec_jax.training import divergence, hooks
from mmrec_jax.training.beginning import (
    Run,
    agree,
    as_saved,
    first_state,
    in_order,
    plan_run,
    throughput,
    with_source,
)
from mmrec_jax.training.display import SHOWN_EPOCHS, Display
from mmrec_jax.training.growing import compare
from mmrec_jax.training.moment import Due, Hook, Journal, Moment, Throughput, Timetable
from mmrec_jax.training.profiling import Profile
from mmrec_jax.training.progress import Progress
from mmrec_jax.training.signals import StopSignals
from mmrec_jax.waiting import waiting

MOST_SKIPPED = 10  # steps in a row
MOST_REWINDS = 3  # to the same checkpoint


def train(
    config: Config, path: Path, profile: bool = False, model: ModelFunctions | None = None
) -> bool:
    """Trains a model in a workdir, resuming from the last checkpoint if there is one.

    Args:
        config: of the run.
        path: the workdir.
        profile: whether to record a trace of a few steps in the folder `profile` of the workdir.
        model: the language model to train; None: MM-Rec as `config.model` describes it. Only MM-Rec
            can grow from another run or be opened with `open_run`.

    Returns:
        Whether there was anything to do: false if the run had already finished.

    Raises:
        UserError: bad input, a workdir of another run, a loss that is not finite, or a full disk.
        Interrupted: after SIGTERM or Ctrl-C, once the state is saved.
    """
    run = processes.together(lambda: plan_run(config, path, model))
    agree(run)
    with contextlib.ExitStack() as stack:
        processes.first_alone(lambda: stack.enter_context(workdirs.locked(path)))
        processes.first_alone(lambda: workdirs.prepare(path, config, run.dataset))
        speed = throughput(run)  # measured on single devices, so without the mesh
        stack.enter_context(jax.set_mesh(run.mesh))
        signals = stack.enter_context(StopSignals())
        stack.enter_context(processes.losing_one())
        checkpoints = Checkpoints(path / "checkpoints", config.train.keep_checkpoints)
        run = with_source(run, checkpoints)
        with waiting("preparing the parameters"):
            state, progress, is_new = first_state(run, checkpoints)
        if progress.finished:
            print(
                f"{path} has finished at step {state.step} ({progress.finished}): nothing to do. "
                f"Best validation loss {progress.best}. To train again, use another --workdir."
            )
            return False
        _introduce(run, state)
        rewinds = 0  # to one checkpoint
        while not progress.finished:
            try:
                with _journal(run, state, progress, checkpoints, is_new) as journal:
                    if is_new and run.source is not None:
                        _evaluate_start(run, state, journal)
                    ordered = in_order(run, progress.rewinds)
                    _train(ordered, state, journal, signals, speed, profile)
                    checkpoints.wait()
            except divergence.Rewind as reason:
                before = progress.rewinds
                state, progress, is_new = first_state(run, checkpoints)
                rewinds = rewinds + 1 if progress.rewinds + rewinds == before else 1
                _rewind(state, progress, rewinds, str(reason))
    print(f"finished: {progress.finished}")
    print(f"best validation loss {progress.best}")
    print(f"evaluate it with: python eval.py --workdir={path}")
    return True


def _rewind(state: TrainState, progress: Progress, times: int, reason: str) -> None:
    """Makes training go on from a checkpoint in another order than before.

    Raises:
        UserError: that was done too often.
    """
    if times > MOST_REWINDS:
        raise UserError(
            f"{reason}, after {MOST_REWINDS} rewinds to step {state.step}. Try a lower "
            "train.learning_rate or a smaller train.clip_norm, in a new --workdir"
        )
    progress.rewinds += times
    print(f"{reason}: going on from step {state.step}, with the text in another order")


def _train(
    run: Run,
    state: TrainState,
    journal: Journal,
    signals: StopSignals,
    speed: Throughput,
    profile: bool,
) -> None:
    """Runs the loop until the run has finished or is interrupted."""
    train, first_step = run.config.train, int(state.step)
    train_step = processes.CompiledTogether(
        make_train_step(run.config, run.optimizer, run.model, shardings(state))
    )
    put = functools.partial(place_batch, mesh=run.mesh, batch_size=train.batch_size)
    example = state, put(run.batches[first_step]), place_signal(0, run.mesh)
    journal.display.say("compiling the training step")
    train_step.compile(*example)
    timetable = Timetable(
        run.total_steps, run.batches.steps_per_epoch, train.eval_every, train.checkpoint_every
    )
    profiling = Profile(run.path / "profile", first_step, journal.display.say)
    numbers = hooks.FetchNumbers()
    after_step = [*([profiling] if profile else []), *_hooks(run, journal, numbers, speed)]
    batches = prefetched(run.batches, first_step, run.total_steps, put)
    try:
        for step in range(first_step + 1, run.total_steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            received = place_signal(signals.received or 0, run.mesh)
            state, metrics = train_step(state, batch, received)
            # Several processes have to stop at the same step.
            alone = jax.process_count() == 1
            due = timetable.due(step, stop=signals.received if alone else numbers.stop)
            moment = Moment(step, state, due, metrics, waited)
            for hook in after_step:
                hook(moment)
            if journal.progress.finished:
                return
    finally:
        profiling.close()


def _hooks(
    run: Run, journal: Journal, numbers: hooks.FetchNumbers, speed: Throughput
) -> list[Hook]:
    """The hooks to call after each step, in this order."""
    train = run.config.train
    step_tokens = train.step_tokens
    recurrences = 2 * run.config.model.num_layers * train.accumulate_steps
    eval_step = make_eval_step(run.config.model, run.model)
    most_skipped = min(MOST_SKIPPED, run.batches.steps_per_epoch - 1)
    all_of = f"{run.total_steps:,} steps" if train.fixed_steps else "epochs"

    def evaluation(state: TrainState) -> EvalResult:
        validation = run.dataset.validation
        carry = train.carry_memory
        return evaluate(eval_step, state.params, validation, run.config, carry, model=run.model)

    return [
        numbers,
        divergence.HandleNotFinite(journal, train.on_not_finite, most_skipped),
        hooks.CountSteps(journal),
        hooks.LogSteps(journal, run.schedule, speed),
        divergence.ReportSpikes(journal),
        hooks.Evaluate(evaluation),
        hooks.KeepBest(journal),
        hooks.StopEarly(journal, train.patience, train.min_improvement),
        hooks.EndEpoch(journal, step_tokens),
        hooks.Finish(journal, all_of),
        hooks.ReportScans(journal, recurrences),
        hooks.SaveCheckpoint(journal, functools.partial(as_saved, run)),
        hooks.StopOnSignal(journal),
        numbers.restart_clock,
    ]


def _evaluate_start(run: Run, state: TrainState, journal: Journal) -> None:
    """Compares the grown model with its source and saves it.

    From here on, the source is needed only if growth.old_rate is not 1.
    """
    start = compare(run.source, run.config, state.params, run.dataset, run.mesh)
    moment = Moment(0, state, Due(checkpoint=True), evaluation=start)
    hooks.KeepBest(journal)(moment)
    hooks.SaveCheckpoint(journal, functools.partial(as_saved, run))(moment)


def _introduce(run: Run, state: TrainState) -> None:
    config, train, first_step = run.config, run.config.train, int(state.step)
    epoch_tokens = train.step_tokens * run.batches.steps_per_epoch
    epochs = run.total_steps / run.batches.steps_per_epoch
    print(
        f"{config.name}: {_count(state.params):,} parameters on {_devices(run.mesh)} "
        f"(jax {jax.__version__})"
    )
    print(
        f"{epoch_tokens:,} training tokens per epoch; {run.dataset.tokenizer.vocab_size:,} of "
        f"{config.model.vocab_size:,} token ids in use; {run.total_steps:,} steps of "
        f"{train.batch_size} x {train.seq_len} tokens in {epochs:.4g} epochs"
    )
    if run.model.counts_effort:
        print(
            f"the recurrence is computed in parallel (model.recurrence = {config.model.recurrence})"
        )
    where = f"resuming from step {first_step} of" if first_step else "training in"
    print(f"{where} {run.path}", flush=True)


def _devices(mesh: Mesh) -> str:
    """The devices of a mesh in words, and how many are left over."""
    kind, there_are = mesh.devices.flat[0].device_kind, len(jax.devices())
    if there_are == 1:
        return kind
    return f"{mesh.size} of {there_are} {kind} devices ({in_words(mesh)})"


def _count(params: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


@contextlib.contextmanager
def _journal(
    run: Run, state: TrainState, progress: Progress, checkpoints: Checkpoints, is_new: bool
) -> Iterator[Journal]:
    """Opens the metrics and the display.

    Raises:
        UserError: something cannot be written while they are open.
    """
    first_step = int(state.step)
    metrics, epochs = NoMetrics(), []
    if processes.is_first():
        metrics = MetricsWriter(run.path, -1 if is_new else first_step)
        recent = last_lines(run.path, 2**24)
        epochs = [line for line in recent if line["kind"] == "epoch"][-SHOWN_EPOCHS:]
    display = Display(run.total_steps, first_step, run.config.train.log_every, epochs)
    try:
        metrics.write(
            "event",
            first_step,
            event="resumed" if first_step else "started",
            time=time.time(),
            total_steps=run.total_steps,
            steps_per_epoch=run.batches.steps_per_epoch,
            parameters=_count(state.params),
            rewinds=progress.rewinds,
            **provenance(),
        )
        yield Journal(progress, metrics, display, checkpoints)
        metrics.flush()
    except OSError as error:
        raise UserError(
            f"cannot write to {run.path}: {error.strerror}; fix the problem and run the same "
            "command again"
        ) from error
    finally:
        display.close()
        with contextlib.suppress(OSError):  # the disk is still full
            metrics.close()
