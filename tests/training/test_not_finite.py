"""What training does when a loss is not finite: here, because a batch of one step makes it so."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.data.batches import training_batches
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.errors import UserError
from mmrec_jax.learning.optimizer import learning_rate_schedule, make_optimizer
from mmrec_jax.learning.step import TrainState, init_train_state
from mmrec_jax.model.interface import mmrec
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.training.batch import losses, print_batch, read_batch
from mmrec_jax.training.beginning import in_order, plan_run
from mmrec_jax.training.loop import train
from small_runs import config, final_params

STEPS = {"train__num_steps": 12, "train__keep_checkpoints": 12, "model__dropout": 0.0}
SKIPPING = config(train__on_not_finite="skip", train__checkpoint_every=1, **STEPS)
REWINDING = config(train__on_not_finite="rewind", train__checkpoint_every=3, **STEPS)
BAD = 8  # the step whose batch is poison, counted from 1


def poisoned(cfg, *steps):
    """The model, whose logits are not finite for the batches of these steps."""
    batches = training_batches(load_dataset(cfg).train, cfg)
    return poisoned_by(cfg, [batches[step - 1] for step in steps])


def poisoned_by(cfg, batches):
    poison = jnp.stack([batch.tokens for batch in batches])
    model = mmrec(cfg.model)

    def apply(params, tokens, *args, **kwargs):
        output = model.apply(params, tokens, *args, **kwargs)
        if tokens.shape != poison.shape[1:]:
            return output
        is_poison = (tokens == poison).all(axis=(1, 2)).any()
        return output._replace(logits=jnp.where(is_poison, jnp.nan, output.logits))

    return model._replace(apply=apply)


def events(workdir, kind):
    return [event for event in read_metrics(workdir, "event") if event["event"] == kind]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that has ended at a loss that is not finite."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    cfg = config(train__checkpoint_every=1, **STEPS)
    with pytest.raises(UserError, match=f"step {BAD} is not finite; the last good .* is step 7"):
        train(cfg, workdir, model=poisoned(cfg, BAD))
    return workdir


@pytest.fixture(scope="module")
def skipping(stopped, tmp_path_factory):
    """That run, which has gone on and skipped the step."""
    workdir = shutil.copytree(stopped, tmp_path_factory.mktemp("skipping") / "run")
    assert train(SKIPPING, workdir, model=poisoned(SKIPPING, BAD))
    return workdir


def test_what_is_not_finite_is_neither_saved_nor_logged(stopped):
    assert [event["step"] for event in events(stopped, "diverged")] == [BAD]
    lines = read_metrics(stopped, "train")
    assert [line["step"] for line in lines] == [*range(1, BAD)]
    assert all(np.isfinite([line["loss"], line["grad_norm"]]).all() for line in lines)
    run = open_run(stopped)
    assert run.checkpoints.steps()[-1] == BAD - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.params(BAD - 1)))
    with pytest.raises(UserError, match="has not finished"):
        run.checkpoints.resolve("final")


def test_a_skipped_step_changes_nothing(skipping):
    """The run ends as one of the other steps alone, and does not log the skipped one."""
    (event,) = events(skipping, "skipped")
    assert (event["step"], event["reason"]) == (BAD, "the loss is not finite")
    steps = [line["step"] for line in read_metrics(skipping, "train")]
    assert steps == [step for step in range(1, 13) if step != BAD]
    before, after, later = (saved(skipping, step) for step in (BAD - 1, BAD, BAD + 1))
    for one, other in zip(leaves(before), leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(
        (one != other).any() for one, other in zip(leaves(after), leaves(later), strict=True)
    )
    assert all(np.isfinite(leaf).all() for leaf in final_params(skipping))


@pytest.mark.slow
def test_no_more_than_ten_steps_in_a_row_are_skipped(tmp_path):
    poison = poisoned(SKIPPING, *range(2, 13))
    with pytest.raises(UserError, match=r"step 12 is not finite; the last good .* is step 11"):
        train(SKIPPING, tmp_path, model=poison)
    assert [event["step"] for event in events(tmp_path, "skipped")] == [*range(2, 12)]
    assert [line["step"] for line in read_metrics(tmp_path, "train")] == [1]
    for one, other in zip(leaves(saved(tmp_path, 1)), leaves(saved(tmp_path, 11)), strict=True):
        np.testing.assert_array_equal(one, other)


def saved(workdir, step) -> TrainState:
    optimizer = make_optimizer(SKIPPING.train, learning_rate_schedule(SKIPPING.train, 12))
    like = jax.eval_shape(lambda: init_train_state(SKIPPING, optimizer, jax.random.key(0)))
    return Checkpoints(workdir / "checkpoints", read_only=True).restore_state(step, like)


def leaves(state: TrainState):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state._replace(step=None))]


def test_a_rewound_run_reads_on_in_another_order(skipping, tmp_path, capsys):
    train(REWINDING, tmp_path / "run", model=poisoned(REWINDING, BAD))
    said = f"the loss of step {BAD} is not finite: going on from step 6, with the text in another"
    output = capsys.readouterr().out
    assert said in output
    assert f"mmrec_jax.training.batch --workdir={tmp_path / 'run'} --step={BAD}\n" in output
    lines = read_metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == [*range(1, 13)]
    assert [event["rewinds"] for event in events(tmp_path / "run", "resumed")] == [1]
    losses = [line["loss"] for line in read_metrics(skipping, "train")]  # as if undisturbed, to 7
    assert [line["loss"] for line in lines[:6]] == losses[:6]
    assert lines[6]["loss"] != losses[6]

    plan = plan_run(REWINDING, tmp_path / "run")
    for rewinds, of_step in ((0, 0), (None, 1)):
        batch, tokenizer = read_batch(tmp_path / "run", BAD, rewinds)
        np.testing.assert_array_equal(batch.tokens, in_order(plan, of_step).batches[BAD - 1].tokens)
        assert tokenizer.decode(batch.tokens[0]) in corpus_text()


def corpus_text():
    return "".join(piece.text for piece in open_corpus(REWINDING.data).parts[0].pieces())


def test_the_texts_of_a_step_are_printed_from_the_one_with_the_highest_loss(skipping, capsys):
    print_batch(skipping, step=7, rewinds=None, texts=3)
    output = capsys.readouterr().out
    heads = re.findall(r"^--- text \d+ of 2, .* checkpoint 6 is (.*)$", output, re.MULTILINE)
    assert len(heads) == 2
    assert sorted(heads, reverse=True) == heads
    batch, tokenizer = read_batch(skipping, 7)
    run = open_run(skipping)
    of_texts = losses(run, 6, batch)
    assert float(heads[0]) == pytest.approx(of_texts.max(), abs=1e-4)
    assert tokenizer.decode(batch.tokens[of_texts.argmax()]) in output
    # An independent mean: that of the training step, whose batch it is, with the same parameters.
    (line,) = (x for x in read_metrics(skipping, "train") if x["step"] == 7)
    assert of_texts.mean() == pytest.approx(line["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_run_that_cannot_get_past_a_checkpoint_ends(tmp_path):
    """Whatever the order of the text, the step after the checkpoint is poison."""
    plan = plan_run(REWINDING, tmp_path / "run")
    poison = [in_order(plan, rewinds).batches[6] for rewinds in range(4)]
    with pytest.raises(UserError, match="step 7 is not finite, after 3 rewinds to step 6"):
        train(REWINDING, tmp_path / "run", model=poisoned_by(REWINDING, poison))
