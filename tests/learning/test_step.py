"""What a training step reads, seen in the gradient of a model of which it can be told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmrec_jax.data.batches import Batch
from mmrec_jax.learning.optimizer import make_optimizer
from mmrec_jax.learning.step import init_train_state, make_train_step
from mmrec_jax.model.block import Aux
from mmrec_jax.model.interface import ModelFunctions
from mmrec_jax.model.lm import Output
from small_runs import config

VOCAB, READ, TARGET = 64, 5, 7


def bigram() -> ModelFunctions:
    """Logits that depend only on the token read last, at first all 0."""

    def apply(params, tokens, documents, state=None, key=None, scored=None):
        zero = jnp.zeros(())
        return Output(params["table"][tokens], state, Aux(zero, zero))

    return ModelFunctions(
        init_params=lambda key: {"table": jnp.zeros((VOCAB, VOCAB))},
        init_state=lambda batch: None,
        apply=apply,
    )


def shares_read(noise: float, steps: int) -> np.ndarray:
    """By step and id: the share of tokens read as this id, where the text is READ again and again.

    The gradient of the logit of TARGET after an id is this share times 1 - 1 / VOCAB.
    """
    cfg = config(train__token_noise=noise, train__batch_size=64, train__seq_len=512)
    optimizer = optax.sgd(1.0)
    state = init_train_state(cfg, optimizer, jax.random.key(0), model=bigram())
    step = make_train_step(cfg, optimizer, bigram())
    shape = (cfg.train.batch_size, cfg.train.seq_len)
    batch = Batch(
        tokens=np.full(shape, READ, np.int32),
        documents=np.zeros(shape, np.int32),
        targets=np.full(shape, TARGET, np.int32),
        weights=np.ones(shape, np.float32),
        fresh=np.ones(shape[0], bool),
    )
    table, shares = state.params["table"], []
    for index in range(steps):
        state, _ = step(state._replace(params={"table": jnp.zeros_like(table)}), batch)
        assert state.step == index + 1
        shares.append(np.asarray(state.params["table"], np.float64)[:, TARGET] / (1 - 1 / VOCAB))
    return np.array(shares)


def test_without_noise_the_text_is_read_as_it_is():
    expected = np.eye(VOCAB)[READ]
    np.testing.assert_allclose(shares_read(0.0, 1), [expected], atol=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_token_noise_replaces_its_share_by_all_ids_alike(rate):
    shares = shares_read(rate, 2)
    expected = np.full(VOCAB, rate / VOCAB)
    expected[READ] += 1 - rate
    deviations = (shares - expected) / np.sqrt(expected * (1 - expected) / (64 * 512))
    assert abs(deviations).max() < 4.5
    assert 0.75 < deviations.std() < 1.25
    assert np.any(shares[0] != shares[1])  # other tokens in each step


def test_steps_with_a_parallel_recurrence_are_those_of_the_scan():
    def losses(**more):
        cfg = config(
            train__batch_size=4,
            train__seq_len=64,
            train__accumulate_steps=2,
            model__remat=True,
            **more,
        )
        optimizer = make_optimizer(cfg.train, optax.constant_schedule(1e-2))
        state = init_train_state(cfg, optimizer, jax.random.key(0))
        step = make_train_step(cfg, optimizer)
        rng = np.random.default_rng(0)
        found = []
        for _ in range(10):
            tokens = rng.integers(0, 8, (4, 65)).astype(np.int32)
            documents = np.cumsum(rng.random((4, 64)) < 0.02, axis=1).astype(np.int32)
            weights = np.ones((4, 64), np.float32)
            batch = Batch(tokens[:, :-1], documents, tokens[:, 1:], weights, np.ones(4, bool))
            state, metrics = step(state, batch)
            found.append(jax.device_get(metrics))
        return cfg, found

    cfg, by_scan = losses(model__recurrence="scan")
    _, in_parallel = losses(model__recurrence="parallel", model__recurrence_interval=8)
    np.testing.assert_allclose(
        [metrics.loss for metrics in in_parallel], [metrics.loss for metrics in by_scan], rtol=1e-4
    )
    assert len({float(metrics.loss) for metrics in by_scan}) == 10
    assert all(metrics.recurrence_sweeps is None for metrics in by_scan)
    solutions = 2 * cfg.model.num_layers * cfg.train.accumulate_steps  # forward and backward
    for metrics in in_parallel:
        assert metrics.recurrence_scans == 0
        assert 2 * solutions <= metrics.recurrence_sweeps <= 8 * solutions
