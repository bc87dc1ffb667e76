"""Training and evaluation take any language model that comes as `ModelFunctions`."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmrec_jax.data.batches import every_window
from mmrec_jax.errors import UserError
from mmrec_jax.learning.evaluate import evaluate, make_eval_step
from mmrec_jax.learning.step import init_train_state, make_train_step
from mmrec_jax.model.block import Aux
from mmrec_jax.model.interface import ModelFunctions
from mmrec_jax.model.lm import Output
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.training.beginning import plan_run
from mmrec_jax.training.loop import train
from small_runs import config

VOCAB = 64


def skip_gram():
    """Logits that depend only on the token before the last one, 0 before the beginning."""

    def apply(params, tokens, documents, state=None, key=None, scored=None):
        state = jnp.zeros(len(tokens), jnp.int32) if state is None else state
        before = jnp.concatenate([state[:, None], tokens[:, :-1]], axis=1)
        zero = jnp.zeros(())
        return Output(params["table"][before], tokens[:, -1], Aux(zero, zero))

    return ModelFunctions(
        init_params=lambda key: {"table": 0.1 * jax.random.normal(key, (VOCAB, VOCAB))},
        init_state=lambda batch: jnp.zeros(batch, jnp.int32),
        apply=apply,
    )


def probabilities(table):
    table = np.exp(np.asarray(table, np.float64))
    return table / table.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("carry", [False, True])
def test_a_step_follows_the_gradient_of_the_given_model(carry):
    cfg, optimizer = config(train__carry_memory=carry), optax.sgd(1.0)
    run = plan_run(cfg, Path("nowhere"), skip_gram())
    state = init_train_state(cfg, optimizer, jax.random.key(0), model=skip_gram())
    step = make_train_step(cfg, optimizer, skip_gram())
    table, last = np.asarray(state.params["table"], np.float64), np.zeros(cfg.train.batch_size, int)
    for index in range(2):  # the second batch continues the first if memory is carried
        batch = run.batches[index]
        last = np.where(batch.fresh, 0, last)
        before = np.concatenate([last[:, None], batch.tokens[:, :-1]], axis=1)
        slope, total = probabilities(table), batch.weights.sum()
        gradient = np.zeros_like(table)
        shares = batch.weights / total
        np.add.at(gradient, before, shares[..., None] * slope[before])
        np.add.at(gradient, (before, batch.targets), -shares)
        table, last = table - gradient, batch.tokens[:, -1]
        state, _ = step(state, batch)
        np.testing.assert_allclose(state.params["table"], table, atol=1e-6)


def test_a_run_of_another_model_is_trained_evaluated_and_kept(tmp_path):
    cfg, model = config(train__num_epochs=1, train__eval_batch_size=1), skip_gram()
    assert train(cfg, tmp_path / "run", model=model)
    assert not train(cfg, tmp_path / "run", model=model)  # it has finished
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", read_only=True)
    like = jax.eval_shape(model.init_params, jax.random.key(0))
    params = checkpoints.restore_params(checkpoints.resolve("final"), like)

    split, seq_len = plan_run(cfg, tmp_path / "run", model).dataset.validation, cfg.train.seq_len
    losses = {}
    for carry in (False, True):
        loss = count = 0
        last = np.zeros(cfg.train.eval_batch_size, int)
        for batch in every_window(split, cfg.train.eval_batch_size, seq_len):
            last = last if carry else np.zeros_like(last)
            before = np.concatenate([last[:, None], batch.tokens[:, :-1]], axis=1)
            chosen = probabilities(params["table"])[before, batch.targets]
            loss, count = loss - (batch.weights * np.log(chosen)).sum(), count + batch.weights.sum()
            last = batch.tokens[:, -1]
        losses[carry] = loss / count
        result = evaluate(make_eval_step(cfg.model, model), params, split, cfg, carry, model=model)
        assert result.loss == pytest.approx(losses[carry], abs=1e-5)
    logged = read_metrics(tmp_path / "run", "evaluation")[-1]["loss"]
    assert logged == pytest.approx(losses[False], abs=1e-5)
    assert losses[True] != losses[False]
    started = read_metrics(tmp_path / "run", "event")[0]
    assert started["parameters"] == VOCAB**2


def test_only_mmrec_grows(tmp_path):
    cfg = dataclasses.replace(config(), init_from="runs/other")
    with pytest.raises(UserError, match="only MM-Rec can grow"):
        plan_run(cfg, tmp_path / "run", skip_gram())
