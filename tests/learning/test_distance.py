"""Loss by distance: against a search back through the text, and the interval of a known mean."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.data.batches import Batch, SplitWindows
from mmrec_jax.data.dataset import ArrayTokens, Split
from mmrec_jax.learning.breakdown import Breakdown
from mmrec_jax.learning.distance import Follower


def some_split(lengths, alphabet, seed):
    """Documents of random tokens; few different ones, so that distances are of all sizes."""
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    tokens = rng.integers(0, alphabet, len(documents), dtype=np.int32)
    return Split(ArrayTokens(tokens, documents), len(tokens), 1)


def found_by_search(split, start, target):
    """Distances of token and pair at `target`, by searching back to `start` or the document's."""
    tokens, documents = split.tokens
    first = max(start, int(np.flatnonzero(documents == documents[target])[0]))
    token = [p for p in range(first, target) if tokens[p] == tokens[target]]
    pair = [
        p
        for p in range(first + 1, target)
        if (tokens[p - 1], tokens[p]) == (tokens[target - 1], tokens[target])
    ]
    return [target - max(places) if places else 0 for places in (token, pair)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(1, 30),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_distances_equal_those_of_a_search(lengths, alphabet, seq_len, lanes, unit, seed):
    split = some_split([*lengths, 2], alphabet, seed)
    documents = split.tokens.documents
    windows = math.ceil((split.num_tokens - 1) / (seq_len * lanes * unit)) * unit
    follower, seen = Follower(distances=True), set()
    for step, batch in enumerate(SplitWindows(split, lanes, seq_len, unit)):
        places = follower.places(batch)
        for lane, t in zip(*np.nonzero(batch.weights), strict=True):
            start = lane * windows * seq_len
            target = start + step * seq_len + t + 1
            expected = found_by_search(split, start, target)
            assert [places.token[lane, t], places.pair[lane, t]] == expected
            seen.add(target)
    assert seen == set(1 + np.flatnonzero(documents[1:] == documents[:-1]))


def test_losses_fall_into_the_buckets_of_their_distances():
    # Targets:   b  a  b  b  c  a       Pairs: ab ba ab bb bc ca
    # Distances: -  2  2  1  -  4              -  -  2  -  -  -
    tokens = np.array([[0, 1, 0, 1, 1, 2, 0]], np.int32)
    losses = np.array([[1, 2, 4, 8, 16, 32]], np.float32)
    weights, zeros = np.ones((1, 6), np.float32), np.zeros((1, 6), np.int32)
    batch = Batch(tokens[:, :-1], zeros, tokens[:, 1:], weights, np.ones(1, bool))
    breakdown = Breakdown()
    breakdown.add(batch, losses, Follower(distances=True).places(batch))

    def rows(kind):
        return [(b.name, b.tokens, b.loss, b.interval) for b in breakdown.buckets(kind)]

    assert rows("token") == [
        ("1", 1, 8, None),
        ("2 to 3", 2, 3, None),
        ("4 to 7", 1, 32, None),
        ("never before", 2, 17 / 2, None),
    ]
    assert rows("pair") == [("2 to 3", 1, 4, None), ("never before", 5, 59 / 5, None)]
    assert rows("position") == [("0 to 255", 6, 63 / 6, None)]
    assert rows("total")[0][1:] == (6, 63 / 6, None)


def documents_of_losses(means, length, noise=0.0, seed=0):
    """A breakdown of documents, each in a batch of its own, with these mean losses."""
    rng, breakdown = np.random.default_rng(seed), Breakdown()
    for document, mean in enumerate(means):
        shape = 1, length
        ids = np.full(shape, document, np.int32)
        ones, tokens = np.ones(shape, np.float32), np.arange(length, dtype=np.int32)[None]
        batch = Batch(tokens, ids, tokens + 1, ones, np.ones(1, bool))
        losses = mean + noise * rng.standard_normal(shape)
        breakdown.add(batch, losses, Follower(distances=True).places(batch))
    return breakdown


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    means = np.random.default_rng(1).normal(3.0, 0.5, size=200)
    (total,) = documents_of_losses(means, length=5).buckets("total")
    error = 1.96 * means.std() / math.sqrt(len(means))
    assert total.loss == pytest.approx(means.mean())
    assert total.interval == pytest.approx((means.mean() - error, means.mean() + error), abs=0.01)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        means = np.random.default_rng(seed).normal(3.0, 0.5, size=30)
        (total,) = documents_of_losses(means, length=2).buckets("total")
        covered += total.interval[0] <= 3.0 <= total.interval[1]
    assert 88 <= covered <= 99


def test_a_difference_resamples_the_documents_of_both_runs_together():
    # The losses of documents differ widely, those of the runs on one document hardly.
    means = np.random.default_rng(1).normal(3.0, 0.5, size=50)
    first = documents_of_losses(means, 20, noise=0.01)
    second = documents_of_losses(means + 0.02, 20, noise=0.01, seed=1)
    (difference,) = second.buckets("total", minus=first)
    assert difference.loss == pytest.approx(0.02, abs=0.002)
    low, high = difference.interval
    assert 0.015 < low < 0.02 < high < 0.025
    low, high = second.buckets("total")[0].interval
    assert high - low > 0.2
    with pytest.raises(ValueError, match="different tokens"):
        first.buckets("total", minus=documents_of_losses(means, 21))


def test_more_documents_than_groups_still_count_every_token():
    means = np.random.default_rng(1).normal(3.0, 0.5, size=1_500)
    breakdown = documents_of_losses(means, 2)
    (total,) = breakdown.buckets("total")
    assert (total.tokens, breakdown.documents) == (3_000, 1_000)
    assert total.loss == pytest.approx(means.mean())
    error = 1.96 * means.std() / math.sqrt(len(means))
    assert total.interval == pytest.approx((means.mean() - error, means.mean() + error), rel=0.01)


def test_the_loss_of_a_sum_is_the_mean_over_its_models():
    means = np.random.default_rng(1).normal(3.0, 0.5, size=50)
    one, other = documents_of_losses(means, 20), documents_of_losses(2 * means, 20)
    (both,) = (one + other).buckets("total")
    assert both.loss == pytest.approx(1.5 * means.mean())
    (difference,) = (one + other).buckets("total", minus=one + one)
    assert difference.loss == pytest.approx(0.5 * means.mean())
    error = 1.96 * 0.5 * means.std() / math.sqrt(len(means))
    assert difference.interval[1] - difference.loss == pytest.approx(error, rel=0.1)
