"""Recall texts, and the suite that asks for the facts after more and more noise."""

import itertools

import numpy as np
import pytest

import configs.recall as recall_config
import small_runs
from mmrec_jax.config import from_mapping
from mmrec_jax.data.batches import RecallTexts, every_window, training_batches
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.data.sources import recall
from mmrec_jax.errors import UserError
from mmrec_jax.learning import recall as learning_recall
from mmrec_jax.learning.recall import recall_accuracy
from mmrec_jax.report.recall import run_recall_suite
from mmrec_jax.runs import workdir as workdirs
from mmrec_jax.training.loop import train

PAIRS = 3


def words(tokens):
    return recall.TOKENIZER.decode(tokens).split()


def solve(text, pairs=PAIRS):
    """Answers to the questions at the end of a text, as words, from the text alone."""
    if text[-6] == "is":  # the text includes the first question; find the first statement
        place = text.index("key")
        return text[place + 2 : place + 7]
    facts = {}
    for word, after in itertools.pairwise(text):
        if word.startswith("k") and word not in facts:
            facts[word] = after
    return [facts[word] for word in text[-2 * pairs :: 2]]


@pytest.mark.parametrize("task", recall.TASKS)
@pytest.mark.parametrize("length", [10, 11, 40])
def test_answers_follow_from_the_facts(task, length):
    rng = np.random.default_rng(0)
    for _ in range(30):
        text = recall.make_text(rng, task, PAIRS, length)
        assert len(text.facts) == length
        assert len(text.questions) == recall.question_tokens(task, PAIRS) == len(text.answers)
        noise = recall.make_noise(rng, task, 7)
        assert not set(words(noise)) & {*recall.KEYS, *recall.VALUES, *recall.DIGITS}
        whole = words(np.concatenate([text.facts, noise, text.questions]))
        assert solve(whole) == words(text.questions[text.answers])


def test_filler_taken_in_pieces_consists_of_complete_sentences():
    noise = recall.Noise(np.random.default_rng(0), "passkey")
    pieces = [noise.take(length) for length in (0, 1, 5, 40, 3, 1, 200)]
    assert [len(piece) for piece in pieces] == [0, 1, 5, 40, 3, 1, 200]
    *sentences, _ = " ".join(words(np.concatenate(pieces))).split(" . ")
    assert {f"{sentence} ." for sentence in sentences} == set(recall.FILLER)


def test_pairs_are_together_or_scattered_anywhere():
    rng, places = np.random.default_rng(0), {"together": set(), "scattered": set()}
    for task, seen in places.items():
        for _ in range(1500):
            text = words(recall.make_text(rng, task, PAIRS, 12).facts)
            seen.add(tuple(i for i, word in enumerate(text) if word.startswith("k")))
    assert places["together"] == {(i, i + 2, i + 4) for i in range(7)}
    assert len(places["scattered"]) == 84  # 9 places for 3 pairs: 9! / (6! 3!)


def config(**overrides):
    values = {"data__source": "recall", "data__tokenizer": "word", "model__vocab_size": 192}
    values |= {"data__recall_pairs": PAIRS, "train__batch_size": 6, "train__seq_len": 32}
    return small_runs.config(**(values | overrides))


def test_training_texts_predict_only_answers_and_are_new_in_every_step():
    batches = training_batches(load_dataset(config()).train, config())
    gaps, seen = set(), set()
    for step in range(40):
        batch = batches[step]
        assert batch.fresh.all()
        np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
        for row, (tokens, targets, weights) in enumerate(
            zip(batch.tokens, batch.targets, batch.weights, strict=True)
        ):
            text, answers = words(tokens), words(targets[weights > 0])
            assert solve(text) == answers
            assert len(answers) == (5 if row % 3 == 2 else PAIRS)
            gaps.add(text.index(text[-2]) if row % 3 == 0 else 0)
            seen.add(tuple(tokens))
    assert len(seen) == 40 * 6
    assert len(gaps) > 15
    again = training_batches(load_dataset(config()).train, config())[39]
    for a, b in zip(again, batch, strict=True):
        np.testing.assert_array_equal(a, b)
    other_seed = config(train__seed=1)
    assert np.any(RecallTexts(other_seed)[39].tokens != batch.tokens)


def test_training_texts_may_have_fewer_pairs():
    batches = RecallTexts(config(data__recall_fewest=2))
    counts = set()
    for step in range(20):
        batch = batches[step]
        for row, weights in enumerate(batch.weights > 0):
            text, answers = words(batch.tokens[row]), words(batch.targets[row][weights])
            if row % 3 != 2:
                assert solve(text, len(answers)) == answers
                counts.add(len(answers))
    assert counts == {2, 3}
    with pytest.raises(UserError, match="recall_fewest is 4; it must be at most"):
        config(data__recall_fewest=4)


def test_held_out_splits_share_no_texts():
    dataset = load_dataset(config())
    splits = [split.tokens.tokens.reshape(-1, 32) for split in (dataset.validation, dataset.test)]
    texts = [{tuple(row) for row in split} for split in splits]
    assert not texts[0] & texts[1]
    (batch,) = [next(iter(every_window(dataset.validation, 6, 32)))]
    for row, (tokens, weights) in enumerate(zip(batch.tokens, batch.weights, strict=True)):
        assert solve(words(tokens)) == words(tokens[1:][weights[:-1] > 0])
        assert weights.sum() == (5 if row % 3 == 2 else PAIRS)
    assert dataset.validation.num_bytes > 0


@pytest.mark.parametrize("sight", [10_000, 100])
def test_suite_asks_for_the_same_facts_after_more_and_more_noise(monkeypatch, sight):
    """A reader that remembers exactly the last `sight` tokens replaces the model."""

    def read(_, state, tokens):
        state = np.concatenate([state, tokens], axis=1)
        predicted = np.zeros(tokens.shape, int)
        for row in range(len(tokens)):
            for i in range(tokens.shape[1]):
                end = state.shape[1] - tokens.shape[1] + i + 1
                predicted[row, i] = guess(words(state[row, max(end - sight, 0) : end]))
        return predicted, state

    def guess(text):
        """The next token after a key, or after a digit or the question of a passkey."""
        if text[-1].startswith("k") and text[-1] in text[:-1]:
            return recall.TOKENIZER.encode(text[text.index(text[-1]) + 1])[0]
        done = 0
        while text[-1 - done].isdigit():
            done += 1
        if done < 5 and text[-4 - done : len(text) - done] == ["the", "pass", "key", "is"]:
            place = text.index("key")
            if place < len(text) - 2 - done:
                return recall.TOKENIZER.encode(text[place + 2 + done])[0]
        return 0

    lengths = []

    def skip(_, state, tokens):
        lengths.append(tokens.shape[1])
        return (np.concatenate([state, tokens], axis=1),)

    monkeypatch.setattr(learning_recall, "_readers", lambda _: (read, skip))
    monkeypatch.setattr(learning_recall, "init_state", lambda _, n: np.zeros((n, 0), np.int32))
    monkeypatch.setattr(learning_recall, "LONG_PIECE", 64)
    asked, accuracy = recall_accuracy(config(train__seq_len=64), None, multiples=(1, 3, 8), texts=4)
    assert lengths
    assert asked == {"together": 48, "scattered": 48, "passkey": 80}  # four times each
    for shares in accuracy.values():
        assert shares == ([1.0, 1.0, 1.0] if sight > 1000 else [1.0, 0.0, 0.0])


def test_the_suite_refuses_runs_of_other_texts(tmp_path):
    workdirs.prepare(tmp_path, small_runs.config(), load_dataset(small_runs.config()))
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    (tmp_path / "checkpoints/1/_CHECKPOINT_METADATA").touch()
    with pytest.raises(UserError, match=r"trained on data.source 'sample'; the suite 'recall'"):
        run_recall_suite([tmp_path], "best")


@pytest.mark.slow
def test_a_trained_model_recalls_facts_after_twenty_times_the_trained_length(tmp_path):
    train(from_mapping(recall_config.get_config()), tmp_path / "run")
    (result,) = run_recall_suite([tmp_path / "run"], "final", multiples=(1, 20))
    for task in recall.TASKS:
        assert min(result.accuracy[task]) >= 0.99
    assert (tmp_path / "run/recall.png").stat().st_size > 10_000


def test_too_many_pairs_are_refused():
    with pytest.raises(UserError, match="needs 40 tokens"):
        load_dataset(config(data__recall_pairs=10))
    with pytest.raises(UserError, match="64 keys"):
        load_dataset(config(data__recall_pairs=65, train__seq_len=512))
    with pytest.raises(UserError, match="need 179"):
        load_dataset(config(model__vocab_size=100))
