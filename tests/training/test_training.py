"""Complete runs of a small model, and the files in their workdir."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from helpers import forward
from mmrec_jax.config import Config
from mmrec_jax.data.batches import Batch
from mmrec_jax.data.sources.sample import sample_texts
from mmrec_jax.data.tokenizers import document_tokens
from mmrec_jax.errors import UserError
from mmrec_jax.learning.optimizer import learning_rate_schedule
from mmrec_jax.learning.step import TrainState, init_train_state, make_train_step
from mmrec_jax.model.params import model_graph
from mmrec_jax.report.evaluation import evaluate_run
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.training.loop import train
from small_runs import config

KEEP, CHECKPOINT_EVERY = 2, 7


class Finished(NamedTuple):
    workdir: Path
    config: Config
    files: list[Path]  # of the corpus, deleted after training
    texts: list[str]

    def train_lines(self):
        return read_metrics(self.workdir, "train")

    def evaluations(self):
        return read_metrics(self.workdir, "evaluation")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """A run on two files; the second one starts in the middle of the validation split.

    The learning rate rises at the end, so that the best checkpoint is not one of the last.
    """
    folder = tmp_path_factory.mktemp("finished")
    text = sample_texts(0, 3000)[0].replace("e", "ğ").replace("o", "ş")[:3000]
    texts, files = [text[:2550], text[2550:]], [folder / "a.txt", folder / "b.txt"]
    for file, content in zip(files, texts, strict=True):
        file.write_text(content, encoding="utf-8")
    cfg = config(
        data__source="text",
        data__path=str(folder / "*.txt"),
        data__validation_fraction=0.1,
        data__test_fraction=0.1,
        train__learning_rate=1e-2,
        train__final_learning_rate=3.0,
        train__eval_every=10,
        train__patience=0,
        train__checkpoint_every=CHECKPOINT_EVERY,
        train__keep_checkpoints=KEEP,
    )
    train(cfg, folder / "run")
    for file in files:
        file.unlink()
    return Finished(folder / "run", cfg, files, texts)


# --- what a run writes ---


def test_every_step_has_one_line(finished):
    steps = [line["step"] for line in finished.train_lines()]
    assert steps == list(range(1, 75))  # 2 epochs of 37
    assert [line["epoch"] for line in finished.train_lines()] == [1] * 37 + [2] * 37
    assert [line["step"] for line in finished.evaluations()] == [
        10,
        20,
        30,
        37,
        *range(40, 71, 10),
        74,
    ]


def test_the_logged_learning_rate_follows_the_schedule(finished):
    schedule = learning_rate_schedule(finished.config.train, 74)
    for line in finished.train_lines():
        assert line["learning_rate"] == float(schedule(line["step"]))


def test_epoch_rows_are_the_statistics_of_their_steps(finished):
    rows = read_metrics(finished.workdir, "epoch")
    assert [row["epoch"] for row in rows] == [1, 2]
    evaluations = {line["step"]: line for line in finished.evaluations()}
    for row in rows:
        losses = [x["loss"] for x in finished.train_lines() if x["epoch"] == row["epoch"]]
        assert row["steps"] == len(losses)
        assert (row["first"], row["last"]) == (losses[0], losses[-1])
        assert (row["min"], row["max"]) == (min(losses), max(losses))
        assert row["mean"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
        assert row["change %"] == pytest.approx(100 * (losses[-1] - losses[0]) / losses[0])
        assert row["val loss"] == evaluations[row["step"]]["loss"]


def test_the_newest_checkpoints_and_the_best_are_kept(finished):
    losses = {line["step"]: line["loss"] for line in finished.evaluations()}
    best = min(losses, key=losses.get)
    improved = {step for step, loss in losses.items() if loss == min(
        value for other, value in losses.items() if other <= step
    )}  # fmt: skip
    saved = sorted({*range(CHECKPOINT_EVERY, 75, CHECKPOINT_EVERY), *improved, 74})
    newest = saved[-KEEP:]
    assert best not in newest
    checkpoints = open_run(finished.workdir).checkpoints
    assert checkpoints.steps() == sorted({best, *newest})
    assert checkpoints.resolve("best") == best
    assert checkpoints.resolve("final") == checkpoints.resolve("latest") == 74
    progress = checkpoints.progress(74)
    assert progress["finished"] == "all epochs done"
    assert (progress["best_step"], progress["best_loss"]) == (best, losses[best])


@pytest.mark.parametrize("name", ["73", "newest", "-1"])
def test_a_missing_checkpoint_is_refused_with_a_list_of_existing_ones(finished, name):
    with pytest.raises(UserError, match=rf"no checkpoint '{name}'.*best, latest, final.* 74"):
        open_run(finished.workdir).checkpoints.resolve(name)


# --- evaluation ---


def text_of(split, tokenizer):
    """The text of a split, one string per document."""
    tokens, documents = split.tokens.read(0, split.num_tokens)
    starts = np.flatnonzero(np.diff(documents)) + 1
    return [tokenizer.decode(tokens.tolist()) for tokens in np.split(tokens, starts)]


def test_evaluation_agrees_with_the_log_and_with_numpy(finished):
    assert not any(file.exists() for file in finished.files)
    values = evaluate_run(finished.workdir, "best", "validation", None)
    assert json.loads((finished.workdir / "eval.json").read_text()) == values
    logged = next(x for x in finished.evaluations() if x["step"] == values["step"])
    for name in ("loss", "accuracy", "bits_per_byte", "perplexity", "tokens"):
        assert values[name] == pytest.approx(logged[name], rel=1e-6)

    run = open_run(finished.workdir)
    params, split = run.params(values["step"]), run.split("validation")
    seq_len, vocab = run.config.train.seq_len, run.config.model.vocab_size
    tokens, documents = split.tokens.read(0, split.num_tokens)
    count = len(tokens) - 1
    windows = -(-count // seq_len)
    padded = [
        np.resize(x, windows * seq_len).reshape(windows, seq_len) for x in (tokens, documents)
    ]
    logits = forward(run.config.model)(params, *padded).logits
    logits = np.asarray(logits, np.float64).reshape(-1, vocab)[:count]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets, within = tokens[1:], documents[1:] == documents[:-1]
    losses = -log_probabilities[np.arange(count), targets][within]
    assert not within.all()
    assert values["tokens"] == len(losses)
    assert values["loss"] == pytest.approx(losses.mean(), abs=1e-5)
    accuracy = np.mean(logits.argmax(axis=1)[within] == targets[within])
    assert values["accuracy"] == pytest.approx(accuracy, abs=1e-9)

    documents = text_of(split, run.tokenizer)
    assert "".join(documents) == "".join(finished.texts)[2400:2700]
    assert [len(document) for document in documents] == [150, 150]
    num_bytes = sum(len(document.encode()) for document in documents)
    assert num_bytes > len(losses)
    bits = losses.sum() / math.log(2)
    assert values["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert values["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    per_byte, per_word = (losses.sum() / n for n in (num_bytes, len(" ".join(documents).split())))
    assert values["byte_perplexity"] == pytest.approx(math.exp(per_byte), rel=1e-5)
    assert values["word_perplexity"] == pytest.approx(math.exp(per_word), rel=1e-4)


def test_a_text_file_is_read_as_one_text_of_any_length(finished, tmp_path):
    text = "".join(finished.texts)[:1000] + "\r\n€"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    values = evaluate_run(finished.workdir, "final", "test", tmp_path / "a.txt")
    assert values["text"] == str(tmp_path / "a.txt")

    run = open_run(finished.workdir)
    tokens = document_tokens(run.tokenizer, text)
    padded = jnp.zeros((1, 1024), jnp.int32).at[0, : len(tokens)].set(tokens)
    model = nnx.merge(model_graph(run.config.model), run.params(74))
    logits = np.asarray(model(padded, jnp.zeros_like(padded)).logits[0], np.float64)
    logits = logits[: len(tokens) - 1]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), tokens[1:]]
    assert values["tokens"] == len(losses) == 1003
    assert values["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert values["accuracy"] == (logits.argmax(axis=1) == tokens[1:]).mean()
    num_bytes = len(text.encode())
    assert values["bits_per_byte"] == pytest.approx(
        losses.sum() / math.log(2) / num_bytes, rel=1e-5
    )
    per_word = losses.sum() / len(text.split())
    assert values["word_perplexity"] == pytest.approx(math.exp(per_word), rel=1e-4)
    buckets = values["by_position"]
    assert [bucket["first"] for bucket in buckets] == [0, 256, 512]
    assert [bucket["tokens"] for bucket in buckets] == [256, 256, 491]
    for bucket, part in zip(buckets, np.split(losses, [256, 512]), strict=True):
        assert bucket["loss"] == pytest.approx(part.mean(), rel=1e-5)
    pairs = list(itertools.pairwise(tokens))
    for kind, keys in (("by_token", list(tokens)), ("by_pair", [None, *pairs])):
        expected = {}
        for target in range(1, len(tokens)):
            earlier = [p for p in range(target) if keys[p] == keys[target]]
            first = 2 ** int(math.log2(target - earlier[-1])) if earlier else None
            expected.setdefault(first, []).append(losses[target - 1])
        found = {bucket["first"]: bucket for bucket in values[kind]}
        assert set(found) == set(expected)
        for first, part in expected.items():
            assert found[first]["tokens"] == len(part)
            assert found[first]["loss"] == pytest.approx(np.mean(part), rel=1e-4)


def test_an_empty_text_has_nothing_to_predict(finished, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"a\.txt has nothing to predict"):
        evaluate_run(finished.workdir, "final", "test", tmp_path / "a.txt")


# --- a workdir belongs to one run ---


def refusal(finished, cfg, texts):
    for file, content in zip(finished.files, texts, strict=True):
        file.write_text(content, encoding="utf-8")
    before = {p: p.read_bytes() for p in finished.workdir.rglob("*") if p.is_file()}
    try:
        with pytest.raises(UserError) as error:
            train(cfg, finished.workdir)
    finally:
        for file in finished.files:
            file.unlink()
    assert {p: p.read_bytes() for p in finished.workdir.rglob("*") if p.is_file()} == before
    return str(error.value)


def test_another_config_is_refused(finished):
    other = dataclasses.replace(
        finished.config, train=dataclasses.replace(finished.config.train, weight_decay=0.2)
    )
    message = refusal(finished, other, finished.texts)
    assert "train.weight_decay: 0.1 -> 0.2" in message


@pytest.mark.parametrize("where", ["train", "test", "boundary"])
def test_another_corpus_is_refused(finished, where):
    one, two = finished.texts
    changed = {
        "train": [one[1] + one[0] + one[2:], two],  # the same counts of every character
        "test": [one, two[:-1] + "a"],
        "boundary": [one + two[0], two[1:]],
    }[where]
    assert "another corpus" in refusal(finished, finished.config, changed)


def test_another_tokenizer_is_refused(finished):
    one, two = finished.texts
    message = refusal(finished, finished.config, ["€" + one[1:], two])
    assert "another tokenizer" in message


# --- other ends of a run ---


def test_training_stops_early_when_validation_does_not_improve(tmp_path):
    cfg = config(
        train__learning_rate=0.0,
        train__initial_learning_rate=0.0,
        train__final_learning_rate=0.0,
        train__eval_every=10,
        train__patience=1,
    )
    train(cfg, tmp_path / "run")
    evaluations = read_metrics(tmp_path / "run", "evaluation")
    assert [line["step"] for line in evaluations] == [10, 20]
    assert evaluations[0]["loss"] == evaluations[1]["loss"]
    assert read_metrics(tmp_path / "run", "train")[-1]["step"] == 20
    checkpoints = open_run(tmp_path / "run").checkpoints
    assert checkpoints.resolve("final") == 20
    progress = checkpoints.progress(20)
    assert progress["finished"].startswith("stopped early: ")
    assert "validation loss has not improved in 1 evaluations" in progress["finished"]
    assert progress["best_step"] == 10
    started, event = read_metrics(tmp_path / "run", "event")
    assert (started["step"], started["event"], started["total_steps"]) == (0, "started", 62)
    assert (event["step"], event["event"]) == (20, "stopped early")
    assert event["reason"] == progress["finished"]


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([2.0, 1.0, 3.0, 4.0], 2),
        ([2.0, 1.0, None, None], 2),
        ([1.0, 1.0, 1.0, 2.0], 1),  # the first, as early stopping sees it
        ([1.0, math.nan, 2.0, 3.0], 1),
        ([2.0, 1.0, math.nan, math.nan], 2),
        ([1.0, math.inf, 2.0, 3.0], 1),
    ],
    ids=str,
)
def test_the_best_checkpoint_outlives_worse_ones(tmp_path, losses, best):
    checkpoints, lowest = Checkpoints(tmp_path / "checkpoints", keep=1), math.inf
    for step, loss in enumerate(losses, start=1):
        state = TrainState(np.int32(step), {"w": np.ones(2)}, {"m": np.ones(2)})
        improved = loss is not None and math.isfinite(loss) and loss < lowest
        lowest = loss if improved else lowest
        checkpoints.save(step, state, {"finished": ""}, loss if improved else None)
    checkpoints.wait()
    assert checkpoints.steps() == [best, 4]
    assert checkpoints.resolve("best") == best
    checkpoints.close()


# --- the step ---


def test_micro_batches_add_up_to_the_full_batch():
    # Uses plain gradient descent: Adam's first step shows only the signs of the gradient.
    optimizer = optax.sgd(1.0)
    rng = np.random.default_rng(0)
    shape = 4, 16
    batch = Batch(
        tokens=rng.integers(1, 20, shape).astype(np.int32),
        documents=np.zeros(shape, np.int32),
        targets=rng.integers(1, 20, shape).astype(np.int32),
        # The two micro-batches have very different numbers of tokens.
        weights=(rng.random(shape) < np.array([0.1, 0.2, 0.9, 1.0])[:, None]).astype(np.float32),
        fresh=np.full(4, True),
    )
    results = []
    for accumulate_steps in (1, 2):
        cfg = config(
            model__dropout=0.0,
            model__saliency_weight=0.0,
            train__batch_size=4,
            train__accumulate_steps=accumulate_steps,
        )
        state = init_train_state(cfg, optimizer, jax.random.key(0))
        before = jax.tree.map(np.array, state.params)
        state, metrics = make_train_step(cfg, optimizer)(state, batch)
        change = jax.tree.map(lambda x, y: np.asarray(x) - y, state.params, before)
        results.append((change, metrics))
    (whole, metrics), (summed, summed_metrics) = results
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), summed, whole)
    for name in ("loss", "grad_norm"):
        summed_value, value = (float(getattr(x, name)) for x in (summed_metrics, metrics))
        assert summed_value == pytest.approx(value, rel=1e-5)
    norm = math.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(whole)))
    assert norm == pytest.approx(float(metrics.grad_norm), rel=1e-4)
