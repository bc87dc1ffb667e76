"""Each hook of the training loop on its own."""

import json
import math
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.errors import UserError
from mmrec_jax.learning.evaluate import EvalResult
from mmrec_jax.learning.step import StepMetrics, TrainState
from mmrec_jax.runs.metrics_writer import MetricsWriter
from mmrec_jax.training import divergence, hooks
from mmrec_jax.training.display import Display
from mmrec_jax.training.moment import Due, Journal, Moment, Numbers, Throughput, Timetable
from mmrec_jax.training.profiling import STEPS, WARM_UP, Profile
from mmrec_jax.training.progress import Progress
from mmrec_jax.training.signals import Interrupted

STATE = TrainState(jnp.zeros((), jnp.int32), {}, ())


class Saves:
    """Replaces the checkpoints: records what was saved, and the metrics logged by then."""

    def __init__(self, path):
        self._path, self.saved, self.waited = path, [], 0
        self.directory = path / "checkpoints"

    def save(self, step, state, progress, best_loss=None):
        lines = len((self._path / "metrics.jsonl").read_text().splitlines())
        self.saved.append((step, progress["finished"], best_loss, lines))

    def wait(self):
        self.waited += 1

    def steps(self):
        return [step for step, *_ in self.saved]


@pytest.fixture
def journal(tmp_path):
    metrics = MetricsWriter(tmp_path, -1)
    yield Journal(Progress(), metrics, Display(100, 0, 10), Saves(tmp_path))
    metrics.close()


def lines(tmp_path, kind):
    found = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def result(loss):
    return EvalResult(loss, accuracy=0.5, bits_per_byte=1.0, tokens=10, tokens_per_second=1.0)


def numbers(step, loss=1.0, grad_norm=1.0, seconds=0.5, data_seconds=0.1):
    metrics = {"loss": loss, "saliency_loss": 0.0, "uboo_loss": 0.0, "grad_norm": grad_norm}
    return Numbers(step, metrics, seconds, data_seconds)


def dispatched(step, due=Due(), loss=None):  # noqa: B008
    metrics = StepMetrics(*(jnp.float32(x) for x in (loss or step, 0, 0, 1)), stop=jnp.int32(0))
    return Moment(step, STATE, due, metrics, data_seconds=0.25)


# --- when something is due ---


def test_the_timetable():
    timetable = Timetable(total_steps=10, steps_per_epoch=4, eval_every=3, checkpoint_every=5)
    due = {step: timetable.due(step, stop=None) for step in range(1, 11)}
    assert [step for step in due if due[step].evaluation] == [3, 4, 6, 8, 9, 10]
    assert [step for step in due if due[step].end_of_epoch] == [4, 8, 10]
    assert [step for step in due if due[step].checkpoint] == [5, 10]
    assert [step for step in due if due[step].end_of_training] == [10]
    assert [step for step in due if due[step].anything] == [3, 4, 5, 6, 8, 9, 10]
    assert timetable.due(1, stop=signal.SIGTERM).anything
    assert not timetable._replace(eval_every=0).due(3, stop=None).anything


# --- numbers ---


def test_numbers_come_one_step_late_unless_something_is_due():
    fetch, seen = hooks.FetchNumbers(), []
    for step in range(1, 6):
        moment = dispatched(step, Due(checkpoint=step == 3))
        fetch(moment)
        seen.append([(found.step, found.metrics["loss"]) for found in moment.numbers])
    assert seen == [[], [(1, 1.0)], [(2, 2.0), (3, 3.0)], [], [(4, 4.0)]]


def test_what_was_due_does_not_count_as_training_time():
    fetch = hooks.FetchNumbers()
    first = dispatched(1, Due(evaluation=True))
    fetch(first)
    time.sleep(0.3)  # an evaluation
    fetch.restart_clock(first)
    second = dispatched(2, Due(evaluation=True))
    fetch(second)
    assert second.numbers[0].seconds < 0.2
    assert second.numbers[0].data_seconds == 0.25


@pytest.mark.parametrize(
    ("bad", "name"), [({"loss": math.nan}, "loss"), ({"grad_norm": math.inf}, "gradient norm")]
)
def test_a_number_that_is_not_finite_ends_the_run(journal, tmp_path, bad, name):
    hook = divergence.HandleNotFinite(journal, "stop", most_skipped=10)
    hook(Moment(5, STATE, Due(), numbers=[numbers(4)]))
    journal.checkpoints.save(4, STATE, {"finished": ""})
    with pytest.raises(UserError, match=f"{name} of step 6 is not finite.* good .* step 4"):
        hook(Moment(6, STATE, Due(), numbers=[numbers(5), numbers(6, **bad)]))
    (event,) = lines(tmp_path, "event")
    assert (event["step"], event["event"]) == (6, "diverged")


def test_too_many_skipped_steps_in_a_row_end_the_run(journal, tmp_path):
    hook = divergence.HandleNotFinite(journal, "skip", most_skipped=3)
    for step, loss in enumerate([math.nan] * 3 + [1.0] + [math.inf] * 3, 1):
        moment = Moment(step, STATE, Due(), numbers=[numbers(step, loss)])
        hook(moment)
        assert len(moment.numbers) == (step == 4)
    with pytest.raises(UserError, match="the loss of step 8 is not finite; no checkpoint exists"):
        hook(Moment(8, STATE, Due(), numbers=[numbers(8, math.nan)]))
    of_steps = [(event["step"], event["event"]) for event in lines(tmp_path, "event")]
    assert of_steps == [(step, "skipped") for step in (1, 2, 3, 5, 6, 7)] + [(8, "diverged")]


def test_without_a_checkpoint_there_is_nothing_to_rewind_to(journal):
    hook = divergence.HandleNotFinite(journal, "rewind", most_skipped=3)
    with pytest.raises(UserError, match="step 1 is not finite; no checkpoint exists"):
        hook(Moment(1, STATE, Due(), numbers=[numbers(1, math.nan)]))
    journal.checkpoints.save(4, STATE, {"finished": ""})
    with pytest.raises(divergence.Rewind, match="the loss of step 5 is not finite"):
        hook(Moment(5, STATE, Due(), numbers=[numbers(5, math.nan)]))


def test_a_spike_is_reported_and_noise_is_not(journal, tmp_path, capsys):
    hook = divergence.ReportSpikes(journal)
    losses = 4 * 0.999 ** np.arange(1000) + np.random.default_rng(0).normal(0, 0.1, 1000)
    losses[[50, 700, 900]] = 9.0  # the first of them is too early to tell
    for step, loss in enumerate(losses.tolist(), 1):
        hook(Moment(step, STATE, Due(), numbers=[numbers(step, loss)]))
    events = lines(tmp_path, "event")
    assert [(event["step"], event["loss"]) for event in events] == [(701, 9.0), (901, 9.0)]
    assert events[0]["median"] == pytest.approx(np.median(losses[500:700]))
    said = capsys.readouterr().out
    assert "step 701: loss 9.0000 is a spike" in said
    assert f"mmrec_jax.training.batch --workdir={tmp_path} --step=701" in said


def test_steps_are_counted_and_logged(journal, tmp_path, capsys):
    count = hooks.CountSteps(journal)
    throughput = Throughput(step_tokens=20, devices=4, step_flops=6e3, peak=24e3)
    log = hooks.LogSteps(journal, lambda step: 0.1 * step, throughput)
    for step, loss in ((9, 3.0), (10, 1.0)):
        moment = Moment(step, STATE, Due(), numbers=[numbers(step, loss)])
        count(moment)
        log(moment)
    stats = journal.progress.stats
    assert (stats.count, stats.first, stats.last, stats.mean) == (2, 3.0, 1.0, 2.0)
    assert (stats.min, stats.max, stats.seconds, stats.data_seconds) == (1.0, 3.0, 1.0, 0.2)
    nine, ten = lines(tmp_path, "train")
    assert (nine["step"], nine["loss"], nine["tokens_per_second"]) == (9, 3.0, 40.0)
    assert (ten["epoch"], ten["learning_rate"]) == (1, 1.0)
    assert (nine["tokens_per_second_per_device"], nine["mfu"]) == (10.0, 0.5)
    line = (
        "step 10/100  loss 1.0000  rate 1.00e+00  40 tokens/s (10 per device)  50.0% MFU  45 s left"
    )
    assert capsys.readouterr().out.count(line) == 1


def test_failed_sweeps_are_reported_once_and_counted_at_the_end(journal, capsys):
    hook = hooks.ReportScans(journal, recurrences=8)

    def after(step, scans):
        found = numbers(step)
        found.metrics["recurrence_scans"] = float(scans)
        hook(Moment(step, STATE, Due(), numbers=[found]))
        return capsys.readouterr().out

    assert after(1, 0) == ""
    first = after(2, 3)
    assert first.startswith("step 2: the sweeps of 3 of 8 recurrences did not converge")
    assert first.count("\n") == 1
    assert after(3, 1) == ""
    journal.progress.finished = "all 4 steps done"
    assert after(4, 0) == "the scan was needed for 4 recurrences (12.50% of all)\n"


def test_a_run_without_failed_sweeps_says_nothing(journal, capsys):
    hook = hooks.ReportScans(journal, recurrences=8)
    journal.progress.finished = "all 1 steps done"
    hook(Moment(1, STATE, Due(), numbers=[numbers(1)]))
    assert capsys.readouterr().out == ""


def test_a_speed_without_a_known_peak_has_no_utilization():
    assert Throughput(step_tokens=20).in_words(0.5) == "40 tokens/s"
    assert Throughput(20, step_flops=1.0).utilization(0.5) is None


# --- evaluations ---


def test_an_evaluation_runs_when_it_is_due():
    hook = hooks.Evaluate(lambda state: result(float(state.step)))
    idle, due = Moment(1, STATE, Due(checkpoint=True)), Moment(2, STATE, Due(evaluation=True))
    hook(idle)
    hook(due)
    assert idle.evaluation is None
    assert due.evaluation == result(0.0)


LOSSES = [3.0, math.nan, 2.0, 2.0, 2.5, 1.9]


def test_the_best_evaluation_is_kept(journal, tmp_path):
    hook, improvements = hooks.KeepBest(journal), []
    for step, loss in enumerate(LOSSES):
        moment = Moment(step, STATE, Due(), evaluation=result(loss))
        hook(moment)
        improvements.append(moment.improvement)
    assert improvements == [math.inf, 0, 1.0, 0, 0, pytest.approx(0.1)]
    assert (journal.progress.best_loss, journal.progress.best_step) == (1.9, 5)
    assert len(lines(tmp_path, "evaluation")) == len(LOSSES)


@pytest.mark.parametrize(
    ("patience", "least", "stops"), [(0, 0.0, None), (2, 0.0, 4), (3, 0.0, None), (3, 0.5, 5)]
)
def test_early_stopping(journal, tmp_path, patience, least, stops):
    keep, hook = hooks.KeepBest(journal), hooks.StopEarly(journal, patience, least)
    for step, loss in enumerate(LOSSES):
        moment = Moment(step, STATE, Due(), evaluation=result(loss))
        keep(moment)
        hook(moment)
        hook(Moment(step, STATE, Due()))  # without an evaluation nothing happens
        assert bool(journal.progress.finished) == (stops is not None and step >= stops)
        if journal.progress.finished:
            (event,) = lines(tmp_path, "event")
            assert event["event"] == "stopped early"
            assert f"in {patience} evaluations" in event["reason"]
            break


def test_an_epoch_ends_with_a_row_and_fresh_statistics(journal, tmp_path):
    for loss in (4.0, 2.0):
        journal.progress.stats.add(loss, seconds=0.5, data_seconds=0.05)
    hook = hooks.EndEpoch(journal, step_tokens=20)
    hook(Moment(1, STATE, Due(evaluation=True), evaluation=result(1.5)))
    assert lines(tmp_path, "epoch") == []
    hook(Moment(2, STATE, Due(end_of_epoch=True), evaluation=result(1.5)))
    (row,) = lines(tmp_path, "epoch")
    expected = {"epoch": 1, "steps": 2, "first": 4.0, "last": 2.0, "mean": 3.0, "change %": -50.0}
    expected |= {"val loss": 1.5, "tokens/s": 40.0, "data wait %": pytest.approx(10.0)}
    assert {key: row[key] for key in expected} == expected
    assert (journal.progress.stats.epoch, journal.progress.stats.count) == (2, 0)


def test_from_a_loss_of_0_there_is_no_relative_change():
    stats = Progress().stats
    for loss in (0.0, 1e-7):
        stats.add(loss, seconds=0.5, data_seconds=0.05)
    assert stats.change_percent == 0


# --- saving and stopping ---


def test_checkpoints_are_saved_when_they_are_due_and_after_the_metrics(journal):
    finish, save = (
        hooks.Finish(journal, all_of="epochs"),
        hooks.SaveCheckpoint(journal, lambda state: state),
    )
    moments = [
        Moment(1, STATE, Due()),
        Moment(2, STATE, Due(checkpoint=True)),
        Moment(3, STATE, Due(evaluation=True), evaluation=result(1.0), improvement=0.5),
        Moment(4, STATE, Due(evaluation=True), evaluation=result(1.2)),
        Moment(5, STATE, Due(stop=signal.SIGTERM)),
        Moment(6, STATE, Due(end_of_training=True), evaluation=result(1.1)),
    ]
    for count, moment in enumerate(moments, start=1):
        journal.metrics.write("train", moment.step, loss=1.0)
        finish(moment)
        save(moment)
        assert all(written >= step for step, *_, written in journal.checkpoints.saved), count
    saved = [(step, finished, best) for step, finished, best, _ in journal.checkpoints.saved]
    done = "all epochs done"
    assert saved == [(2, "", None), (3, "", 1.0), (5, "", None), (6, done, None)]


def test_a_signal_ends_the_process_after_everything_is_saved(journal, tmp_path, capsys):
    hook = hooks.StopOnSignal(journal)
    hook(Moment(1, STATE, Due(checkpoint=True)))
    with pytest.raises(Interrupted) as interrupted:
        hook(Moment(2, STATE, Due(stop=signal.SIGTERM)))
    assert interrupted.value.code == 128 + signal.SIGTERM
    assert journal.checkpoints.waited == 1
    (event,) = lines(tmp_path, "event")
    assert (event["event"], event["reason"]) == ("interrupted", "SIGTERM")
    assert "SIGTERM: saved step 2" in capsys.readouterr().out
    journal.progress.finished = "all epochs done"
    hook(Moment(3, STATE, Due(stop=signal.SIGTERM)))  # a finished run ends as finished


def test_a_profile_records_a_few_steps_once(tmp_path):
    said = []
    hook = Profile(tmp_path, first_step=10, say=said.append)
    for step in range(11, 13 + WARM_UP + STEPS):
        hook(dispatched(step))
        assert bool(said) == (step >= 10 + WARM_UP + STEPS)
    hook.close()
    assert said[0].startswith(f"trace of {STEPS} steps: {tmp_path}")
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
