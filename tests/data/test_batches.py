"""Batches: every token once and in the right order, for any step, process and split."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import tiny
from helpers import numbered
from mmrec_jax.config import from_mapping
from mmrec_jax.data.batches import (
    RecallTexts,
    TrainingWindows,
    every_window,
    prefetched,
    training_batches,
)
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.errors import UserError
from small_runs import config

PROPERTY = settings(max_examples=100, deadline=None, database=None)


# --- training batches ---


def test_the_tiny_config_has_126_steps_of_2_x_256_per_epoch():
    cfg = from_mapping(tiny.get_config())
    train = cfg.train
    batches = TrainingWindows(
        load_dataset(cfg).train, train.batch_size, train.seq_len, seed=train.seed
    )
    assert batches.steps_per_epoch == 126
    assert batches[0].tokens.shape == (2, 256)


def test_every_window_occurs_exactly_once_per_epoch():
    batches = TrainingWindows(numbered(12 * 5 + 1), batch_size=3, seq_len=5, seed=0)
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        tokens = np.concatenate([batches[step].tokens for step in steps])
        rows = tokens[tokens[:, 0].argsort()]
        np.testing.assert_array_equal(rows, np.arange(60).reshape(12, 5))


def test_the_windows_left_out_differ_between_epochs():
    batches = TrainingWindows(numbered(13 * 5 + 1), batch_size=3, seq_len=5, seed=0)
    assert batches.steps_per_epoch == 4
    left_out = set()
    for epoch in range(10):
        starts = [x for i in range(4) for x in batches[4 * epoch + i].tokens[:, 0]]
        assert len(set(starts)) == 12
        left_out |= set(range(0, 65, 5)) - set(starts)
    assert len(left_out) > 1


def test_a_batch_is_a_function_of_the_step_alone():
    split = numbered(30, 31)
    one, other = (TrainingWindows(split, batch_size=3, seq_len=5, seed=7) for _ in range(2))
    forwards = [one[step] for step in range(12)]
    backwards = [other[step] for step in reversed(range(12))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_each_epoch_and_seed_has_its_own_order():
    def starts(seed, epoch):
        batches = TrainingWindows(numbered(12 * 5 + 1), batch_size=3, seq_len=5, seed=seed)
        return tuple(x for i in range(4) for x in batches[4 * epoch + i].tokens[:, 0])

    assert len({starts(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_targets_are_the_next_tokens_and_count_within_a_document():
    batches = TrainingWindows(numbered(27, 34), batch_size=3, seq_len=5, seed=0)
    for step in range(batches.steps_per_epoch):
        batch = batches[step]
        np.testing.assert_array_equal(batch.targets, batch.tokens + 1)
        np.testing.assert_array_equal(batch.documents, batch.tokens >= 27)
        np.testing.assert_array_equal(batch.weights, batch.tokens != 26)


# --- evaluation batches ---


@PROPERTY
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5).filter(lambda x: sum(x) > 1),
    st.integers(1, 7),
    st.integers(1, 4),
)
def test_every_token_but_the_first_of_a_document_is_predicted_once(lengths, seq_len, batch_size):
    split = numbered(*lengths)
    batches = list(every_window(split, batch_size, seq_len))
    predicted = []
    for batch in batches:
        assert {array.shape for array in batch[:-1]} == {(batch_size, seq_len)}
        counted = batch.weights == 1
        assert np.all(counted | (batch.weights == 0))
        np.testing.assert_array_equal(batch.tokens[counted] + 1, batch.targets[counted])
        expected = split.tokens.documents[batch.tokens[counted]]
        np.testing.assert_array_equal(batch.documents[counted], expected)
        predicted += list(batch.targets[counted])
    firsts = {0, *itertools.accumulate(lengths[:-1])}
    assert sorted(predicted) == sorted(set(range(sum(lengths))) - firsts)
    assert sum(batch.weights.sum() for batch in batches) == sum(lengths) - len(lengths)


def test_too_little_text_is_refused_with_the_number_of_tokens_needed():
    cfg = config(data__sample_chars=10, train__batch_size=4)
    with pytest.raises(UserError, match="one batch of 4 x 32 needs 129"):
        load_dataset(cfg)


# --- from text to batches ---

SEQ_LEN, ROWS, STEPS = 16, 4, 6
KNOBS = {"train__batch_size": ROWS, "train__seq_len": SEQ_LEN, "model__chunk_len": 8}
ORDERS = {
    "shuffled": {},
    "lanes": {"train__carry_memory": True},
    "stretches": {"train__carry_memory": True, "train__carry_windows": 2},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two documents whose training split fills its batches to the last token."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    total = STEPS * ROWS * SEQ_LEN + 1 - 2  # each document starts with a token of its own
    text = "".join(rng.choice([*"abcdefghijklmnopqrstuvwxyzğşö"], total + 100))
    held_out = 50 / len(text)
    for name, part in (("a", text[:101]), ("b", text[101:])):
        (folder / f"{name}.txt").write_text(part)
    values = {"data__source": "text", "data__path": str(folder / "*.txt")}
    values |= {"data__validation_fraction": held_out, "data__test_fraction": held_out}
    tokenizer = load_dataset(config(**values, **KNOBS)).tokenizer
    tokens = [1, *tokenizer.encode(text[:101]), 1, *tokenizer.encode(text[101:total])]
    return values, np.array(tokens), text[total:]


def steps_of(values, order, epochs=1, first=0, rows=None):
    cfg = config(**values, **KNOBS, **ORDERS[order])
    batches = training_batches(load_dataset(cfg).train, cfg, rows)
    assert batches.steps_per_epoch == STEPS
    return list(prefetched(batches, first, epochs * STEPS))


@pytest.mark.parametrize("order", ORDERS)
def test_every_token_of_the_corpus_is_read_and_predicted_once_per_epoch(corpus, order):
    values, tokens, _ = corpus
    batches = steps_of(values, order, epochs=2)
    for epoch in (batches[:STEPS], batches[STEPS:]):
        read, targets, weights = (
            np.concatenate([getattr(batch, name) for batch in epoch])
            for name in ("tokens", "targets", "weights")
        )
        windows = tokens[:-1].reshape(-1, SEQ_LEN)
        np.testing.assert_array_equal(read[np.lexsort(read.T)], windows[np.lexsort(windows.T)])
        np.testing.assert_array_equal(targets[:, :-1], read[:, 1:])
        place = {row.tobytes(): i for i, row in enumerate(windows.astype(np.int32))}
        following = [tokens[(place[row.tobytes()] + 1) * SEQ_LEN] for row in read]
        np.testing.assert_array_equal(targets[:, -1], following)
        # The start of a document is the only token that nothing predicts.
        np.testing.assert_array_equal(weights, targets != 1)


def test_every_token_of_a_held_out_split_is_evaluated_once(corpus):
    values, _, held_out = corpus
    dataset = load_dataset(config(**values, **KNOBS))
    for split, text in ((dataset.validation, held_out[:50]), (dataset.test, held_out[50:])):
        batches = list(every_window(split, 3, SEQ_LEN))
        predicted = np.stack([(batch.targets, batch.weights) for batch in batches], axis=2)
        targets, weights = predicted.reshape(2, -1)  # lane by lane, so in order
        assert dataset.tokenizer.decode(targets[weights > 0].astype(int)) == text
        assert split.num_bytes == len(text.encode())


# --- processes ---


def share(index, count):
    """The rows that one of several processes reads."""
    return range(index * ROWS // count, (index + 1) * ROWS // count)


def global_batches(parts):
    """The batches of several processes, combined."""
    return [
        jax.tree.map(lambda *x: np.concatenate(x), *same_step)
        for same_step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_several_processes_together_read_the_batch_of_one(corpus, order):
    values, _, _ = corpus
    alone = steps_of(values, order, epochs=2)
    first = 5  # resumed here, with another number of processes
    for count in (2, 4):
        parts = [steps_of(values, order, 2, rows=share(i, count)) for i in range(count)]
        assert {len(part[0].tokens) for part in parts} == {ROWS // count}
        for one, other in zip(alone, global_batches(parts), strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)
        resumed = [steps_of(values, order, 2, first, share(i, count)) for i in range(count)]
        for one, other in zip(alone[first:], global_batches(resumed), strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)


def test_processes_share_texts_generated_on_the_fly():
    cfg = config(
        data__source="recall",
        data__tokenizer="word",
        model__vocab_size=192,
        data__recall_pairs=3,
        train__batch_size=ROWS,
    )
    whole = RecallTexts(cfg)[7]
    parts = [[RecallTexts(cfg, share(i, 4))[7]] for i in range(4)]
    jax.tree.map(np.testing.assert_array_equal, whole, global_batches(parts)[0])


def test_a_split_with_nothing_to_predict_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 500)
    values = {"data__source": "text", "data__path": str(tmp_path / "a.txt")}
    with pytest.raises(UserError, match=r"test split has no token.*data\.test_fraction"):
        load_dataset(config(**values, data__test_fraction=0.0001))
    assert load_dataset(config(**values, data__test_fraction=0.0)).test.num_tokens == 0


def test_the_fingerprint_changes_with_a_token_a_boundary_or_a_split(tmp_path):
    def fingerprint(*documents, **values):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for i, text in enumerate(documents):
            (folder / f"{i}.txt").write_text(text)
        return load_dataset(
            config(data__source="text", data__path=str(folder), **values)
        ).fingerprint

    text = "abcd" * 500
    original = fingerprint(text)
    assert original == fingerprint(text)
    others = [
        fingerprint(text[:-1] + "a"),
        fingerprint(text[:900], text[900:]),
        fingerprint(text[:901], text[901:]),
        fingerprint(text, data__validation_fraction=0.06),
        fingerprint(text, data__test_fraction=0.06),
    ]
    assert len({original, *others}) == 6
