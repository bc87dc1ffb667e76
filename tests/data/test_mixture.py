"""Mixtures of corpora: their shares, their epochs, and resuming without a state."""

from fractions import Fraction

import jax
import numpy as np
import pytest

from helpers import numbered
from mmrec_jax.data.batches import every_window, prefetched, training_batches
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.data.mixture import MixtureWindows, Shares
from mmrec_jax.errors import UserError
from small_runs import config

WEIGHTS = [0.5, 0.2, 0.3]


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.3], WEIGHTS, [1, 100], [3, 1, 1, 2]])
def test_every_corpus_has_its_share_of_any_first_slots(weights, seed):
    shares, counts = Shares(weights, seed), [0] * len(weights)
    for slot in range(500):
        corpus, before = shares[slot]
        assert before == counts[corpus]  # counted one by one
        counts[corpus] += 1
        for count, weight in zip(counts, weights, strict=True):
            expected = (slot + 1) * Fraction(weight) / sum(map(Fraction, weights))
            assert abs(count - expected) < len(weights)
    # The same holds after more slots than a float can count.
    before = [Shares(weights, seed)[10**17 + i] for i in range(200)]
    for corpus in range(len(weights)):
        found = [count for which, count in before if which == corpus]
        assert found == list(range(found[0], found[0] + len(found))) if found else True


def test_a_slot_is_of_each_corpus_with_the_probability_of_its_weight():
    drawn = [Shares(WEIGHTS, seed)[3][0] for seed in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, WEIGHTS, atol=0.03)


def mixture(stretch=1, rows=None, batch_size=4, weights=WEIGHTS, seed=3):
    """Corpora of 9, 20 and 6 windows of 5 tokens, in which a token is its own position."""
    tokens = [9 * 5 + 3, 20 * 5 + 1, 6 * 5 + 4]
    split = numbered(*tokens)._replace(part_tokens=(*tokens, 0))  # a part without training text
    return MixtureWindows(split, weights, batch_size, 5, seed, stretch, rows=rows)


def test_each_corpus_is_read_completely_before_it_is_read_again():
    batches, read = mixture(), [[], [], []]
    assert batches.steps_per_epoch == 35 // 4
    for step in range(60):
        batch = batches[step]
        assert batch.fresh.all()
        assert (batch.weights == 1).all()  # no window reaches into another corpus
        np.testing.assert_array_equal(batch.targets, batch.tokens + 1)
        for row, start in zip(batch.documents[:, 0], batch.tokens[:, 0], strict=True):
            read[row].append(start - (0, 48, 149)[row])
    for windows, found, weight in zip((9, 20, 6), read, WEIGHTS, strict=True):
        assert abs(len(found) - 240 * weight) < 3
        epochs = [found[i : i + windows] for i in range(0, len(found) - windows, windows)]
        assert len(epochs) > 1
        for epoch in epochs:
            assert sorted(epoch) == list(range(0, 5 * windows, 5))
        assert epochs[0] != epochs[1]


def test_a_lane_reads_a_stretch_of_one_corpus_in_order():
    batches = mixture(stretch=3)
    assert batches.steps_per_epoch == (3 + 6 + 2) // 4 * 3
    read = [batches[step] for step in range(60)]
    for lane in range(4):
        begins = np.flatnonzero([batch.fresh[lane] for batch in read])
        np.testing.assert_array_equal(begins[begins > 0] % 3, -lane % 3)  # at different steps
        for step in set(range(1, 60)) - set(begins):
            before, now = read[step - 1], read[step]
            np.testing.assert_array_equal(now.tokens[lane], before.tokens[lane] + 5)
            np.testing.assert_array_equal(now.documents[lane], before.documents[lane])


@pytest.mark.parametrize("stretch", [1, 2])
def test_any_step_in_any_number_of_processes_is_that_of_one(stretch):
    alone = [mixture(stretch)[step] for step in range(30)]
    for step in reversed(range(30)):
        parts = [mixture(stretch, range(2 * i, 2 * i + 2))[step] for i in range(2)]
        whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        jax.tree.map(np.testing.assert_array_equal, whole, alone[step])
    other = mixture(stretch, seed=4)
    assert any((other[step].tokens != alone[step].tokens).any() for step in range(5))


def test_a_corpus_with_less_than_one_stretch_is_refused():
    with pytest.raises(UserError, match=r"corpus 3 of data.mixture has 34 .* 7 x 5 \+ 1"):
        mixture(stretch=7)


# --- from files to batches ---


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for name, letters, count in (("a", "abc", 5000), ("b", "xyz", 2000), ("held", "abx", 900)):
        (tmp_path / f"{name}.txt").write_text("".join(rng.choice([*letters], count)))
    return tmp_path


def mixed(files, **values):
    values = {"data__mixture": f"0.25 {files}/a.txt, 0.75 {files}/b.txt", **values}
    return config(data__source="text", train__batch_size=4, **values)


def text_of(dataset, split):
    return dataset.tokenizer.decode(split.tokens.read(0, split.num_tokens)[0])


def test_a_mixture_of_files_has_one_tokenizer_and_the_held_out_part_of_each(files):
    cfg = mixed(files, data__validation_fraction=0.2, data__test_fraction=0.0)
    dataset = load_dataset(cfg)
    assert dataset.tokenizer.characters == tuple("abcxyz")
    assert dataset.train.part_tokens == (4001, 1601)
    texts = [(files / f"{name}.txt").read_text() for name in "ab"]
    assert text_of(dataset, dataset.validation) == texts[0][4000:] + texts[1][1600:]
    predicted = sum(batch.weights.sum() for batch in every_window(dataset.validation, 4, 32))
    assert predicted == 1400

    batches = training_batches(dataset.train, cfg)
    rows = [row for batch in prefetched(batches, 0, 40) for row in batch.tokens]
    is_a = np.array([dataset.tokenizer.decode(row)[1] in "abc" for row in rows])
    assert abs(is_a.sum() - 40) < 2
    again = [row for batch in prefetched(batches, 25, 40) for row in batch.tokens]
    np.testing.assert_array_equal(again, rows[100:])


def test_separate_held_out_files_are_the_splits(files):
    cfg = mixed(files, data__validation_path=f"{files}/held.txt", data__test_fraction=0.25)
    dataset = load_dataset(cfg)
    assert dataset.train.part_tokens == (3751, 1501, 0)
    assert text_of(dataset, dataset.validation) == (files / "held.txt").read_text()
    one = config(
        data__source="text",
        data__path=f"{files}/a.txt",
        data__validation_path=f"{files}/held.txt",
        data__test_path=f"{files}/b.txt",
    )
    dataset = load_dataset(one)
    for name, split in (("a", dataset.train), ("held", dataset.validation), ("b", dataset.test)):
        text = text_of(dataset, split)
        known = {*"abc"}  # those of the training split
        expected = (files / f"{name}.txt").read_text()
        assert text == "".join(c if c in known else "\N{REPLACEMENT CHARACTER}" for c in expected)
    with pytest.raises(UserError, match=r"data\.test_path '/no' matches no files"):
        load_dataset(
            config(data__source="text", data__path=f"{files}/a.txt", data__test_path="/no")
        )


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({"data__mixture": "books/*.txt, 0.3 b"}, "weights above 0, each before a path"),
        ({"data__mixture": "0.3 a, 0 b"}, "weights above 0"),
        ({"data__mixture": "0.3 a,"}, "weights above 0"),
        ({"data__mixture": "1 a", "data__path": "b"}, "give one of them"),
        ({"data__mixture": "1 a", "train__carry_memory": True}, "train.carry_windows is 0"),
        (
            {"data__source": "sample", "data__mixture": "1 a"},
            "it needs one of text, jsonl, parquet",
        ),
        (
            {"data__source": "sample", "data__test_path": "a"},
            "it needs one of text, jsonl, parquet",
        ),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(values, fragment):
    with pytest.raises(UserError) as error:
        config(**{"data__source": "text", **values})
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)
