"""The loss that saliency learns from, against an oracle that goes through it query by query."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import small_runs
from helpers import documents_with_starts, random_params, random_tokens, small_config
from mmrec_jax.data.windows import Batch
from mmrec_jax.learning.step import training_loss
from mmrec_jax.model import saliency
from mmrec_jax.model.bank import Saliency
from mmrec_jax.model.interface import mmrec
from mmrec_jax.model.memory import Segments
from mmrec_jax.model.saliency import saliency_loss

BATCH, TIME = 2, 40


def test_what_is_read_for_no_prediction_of_a_batch_is_not_used():
    config = small_runs.config(model__dropout=0.0, train__seq_len=TIME)
    params = random_params(config.model)
    tokens, documents = random_tokens(BATCH, TIME), documents_with_starts(TIME, (), ())
    weights = np.ones(tokens.shape, np.float32)
    silent = 4  # the chunk whose predictions do not count
    weights[:, silent * config.model.chunk_len : (silent + 1) * config.model.chunk_len] = 0
    batch = Batch(tokens, documents, tokens, weights, np.ones(BATCH, bool))
    loss = jax.jit(functools.partial(training_loss, config, mmrec(config.model)))
    (_, found, _), _, _ = loss(params, batch, None, 1.0, jax.random.key(0))[1]

    traces = oracle.run_model(params, config.model, tokens, documents)[1]
    everything = oracle.saliency_loss(config.model, traces)
    for text in traces:
        for trace in text:
            used = trace.used[silent]
            assert used.max() > 0
            used[used >= 0] = 0
    expected = oracle.saliency_loss(config.model, traces)
    assert abs(everything - expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def segments_of(documents, scored=None):
    start = jnp.diff(documents, prepend=-1) != 0
    return Segments(start, documents, jnp.zeros((len(documents), 4), jnp.int32), scored)


def brute_force_saliency_loss(config, s, q, k, window_logsumexp, segments, queries):
    """The loss over the given queries of each text, query by query."""
    segment, scored = segments.tokens, segments.scored
    C, S, reach = config.chunk_len, config.short_term, config.seen_tokens
    terms = []
    for b, head in np.ndindex(q.shape[:2]):
        used = {}
        for i in queries:
            begin = i // C * C
            older = [j for j in range(begin - S) if segment[b, j] == segment[b, i]]
            weights = [
                np.exp(
                    oracle.rotate(q[b, head, i], min(begin - j, reach) + i - begin)
                    @ k[b, head, j]
                    / np.sqrt(q.shape[-1])
                )
                for j in older
            ]
            total = np.exp(window_logsumexp[b, head, i]) + np.sum(weights)
            for j, weight in zip(older, weights, strict=True):
                use = weight / total if scored[b, i] else 0
                used[j, begin] = max(used.get((j, begin), 0), use)
        for (j, begin), u in used.items():
            age = (begin - j - S - 1) // C
            logit = oracle.forecast(config, s.s[b, head, j], s.fading[b, head, j], age)
            sigma = oracle.sigmoid(logit)
            terms.append(-u * np.log(sigma) - (1 - u) * np.log(1 - sigma))
    return np.mean(terms)


@pytest.mark.parametrize(
    ("max_queries", "chunk_stride", "stride"), [(256, 1, 1), (20, 1, 2), (4, 3, 4)]
)
def test_saliency_loss_equals_brute_force_over_the_examined_queries(
    monkeypatch, max_queries, chunk_stride, stride
):
    """All queries, half of those of each chunk, and one query of every third chunk.

    What is used for predictions that do not count is not used. The last of the groups of chunks
    that are examined together is not full.
    """
    monkeypatch.setattr(saliency, "AT_ONCE", 16)
    batch, heads, width, time, chunk_len = 1, 2, 4, 40, 4
    config = small_config(dim=8, chunk_len=chunk_len, saliency_queries=max_queries)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k = jnp.asarray(2 * rng.standard_normal((2, batch, heads, time, width)))
        window_logsumexp, *s = jnp.asarray(rng.standard_normal((3, batch, heads, time)))
        s = Saliency(*s)
        documents = jnp.asarray(documents_with_starts(time, (10,)))
        segments = segments_of(documents, jnp.asarray(rng.random((batch, time)) < 0.7))
        texts = q, k, window_logsumexp, segments
        found = set()
        loss_of = jax.jit(lambda key: saliency_loss(config, s, *texts, key))
        for seed in range(4 if stride > 1 else 1):
            loss = loss_of(jax.random.key(seed))
            for first_chunk, first_query in np.ndindex(chunk_stride, stride):
                chunks = first_chunk + chunk_stride * np.arange(time // chunk_len // chunk_stride)
                inside = first_query + stride * np.arange(chunk_len // stride)
                queries = (chunk_len * chunks[:, None] + inside).ravel()
                if np.isclose(loss, brute_force_saliency_loss(config, s, *texts, queries), 1e-9):
                    found.add((first_chunk, first_query))
                    break
            else:
                pytest.fail(f"no choice of queries gives the loss {loss}")
    assert len(found) > 1 or stride == 1


def test_gradient_of_the_saliency_loss_equals_finite_differences(monkeypatch):
    monkeypatch.setattr(saliency, "AT_ONCE", 16)
    batch, heads, width, time = 2, 2, 4, 24
    config, rng = small_config(dim=8), np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k = jnp.asarray(2 * rng.standard_normal((2, batch, heads, time, width)))
        window_logsumexp, *s = jnp.asarray(rng.standard_normal((3, batch, heads, time)))
        segments = segments_of(jnp.asarray(documents_with_starts(time, (), ())))
        texts = q, k, window_logsumexp, segments
        s = Saliency(*s)

        @jax.jit
        def loss(s):
            return saliency_loss(config, s, *texts, jax.random.key(0))

        gradient = jax.grad(loss)(s)
        for field in Saliency._fields:
            for place in ((0, 0, 1), (1, 1, 5), (1, 0, 11), (0, 1, 23)):
                step = np.zeros(s.s.shape)
                step[place] = 1e-5
                above, below = (
                    loss(s._replace(**{field: getattr(s, field) + sign * step})) for sign in (1, -1)
                )
                slope = getattr(gradient, field)[place]
                np.testing.assert_allclose(slope, (above - below) / 2e-5, rtol=1e-6, atol=1e-9)
