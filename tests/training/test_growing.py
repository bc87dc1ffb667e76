"""Runs that start from the model of another run."""

import contextlib
import dataclasses
import io
import itertools
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from mmrec_jax.config import Config
from mmrec_jax.data.tokenizers import CharTokenizer, SubwordTokenizer
from mmrec_jax.errors import UserError
from mmrec_jax.learning.optimizer import make_optimizer
from mmrec_jax.learning.sharding import make_mesh
from mmrec_jax.learning.step import init_train_state
from mmrec_jax.model.growth import is_old
from mmrec_jax.report.evaluation import evaluate_run
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.training.growing import grown_state, open_source, parents
from mmrec_jax.training.loop import train
from small_runs import config

LARGER = {"model__dim": 32, "model__num_layers": 2, "train__num_steps": 12}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "small"
    train(config(train__learning_rate=3e-3), path)
    return path


def grown_config(source: Path, **overrides) -> Config:
    growth = {k.removeprefix("growth__"): v for k, v in overrides.items() if "growth__" in k}
    others = {k: v for k, v in overrides.items() if "growth__" not in k}
    cfg = config(**{**LARGER, **others})
    return dataclasses.replace(
        cfg, init_from=str(source), growth=dataclasses.replace(cfg.growth, warmup_steps=3, **growth)
    )


def printed_losses(printed: str) -> list[tuple[str, float]]:
    """Names and losses in the table of losses at the start."""
    found = re.findall(r"^  (s.*?) +(\d+\.\d{6}) .*%", printed, re.MULTILINE)
    return [(name, float(loss)) for name, loss in found]


class Grown(NamedTuple):
    workdir: Path
    config: Config
    printed: str


@pytest.fixture(scope="module")
def grown(source, tmp_path_factory) -> Grown:
    """A run grown from the source, and what it printed."""
    path, cfg = tmp_path_factory.mktemp("grown") / "run", grown_config(source)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        train(cfg, path)
    return Grown(path, cfg, printed.getvalue())


def test_a_grown_run_starts_at_the_loss_of_its_source(source, grown):
    logged = read_metrics(grown.workdir, "evaluation")
    of_source = min(line["loss"] for line in read_metrics(source, "evaluation"))
    assert logged[0]["step"] == 0
    assert logged[0]["loss"] == pytest.approx(of_source, abs=1e-5)
    assert logged[-1]["loss"] < of_source
    losses = dict(printed_losses(grown.printed))
    assert losses["source"] == pytest.approx(of_source, abs=2e-6)
    assert losses["start"] == pytest.approx(logged[0]["loss"], abs=2e-6)
    rates = [line["learning_rate"] for line in read_metrics(grown.workdir, "train")]
    assert int(np.argmax(rates)) + 1 == 3  # of growth.warmup_steps


def test_a_grown_run_no_longer_needs_its_source(source, grown, tmp_path):
    """The grown model is saved as checkpoint 0, from which the run resumes and is evaluated."""
    start = read_metrics(grown.workdir, "evaluation")[0]
    moved = tmp_path / "moved"
    source.rename(moved)
    try:
        evaluated = evaluate_run(grown.workdir, "0", "validation", None)
        assert evaluated["loss"] == pytest.approx(start["loss"], abs=1e-6)
        train(grown.config, grown.workdir)  # has finished
        with pytest.raises(UserError, match="there is no workdir"):
            train(grown.config, tmp_path / "another")
        assert not (tmp_path / "another").exists()
    finally:
        moved.rename(source)


def grow_from(run, cfg, optimizer):
    source = open_source(cfg, run.tokenizer)
    return grown_state(source, cfg, run.tokenizer, optimizer, make_mesh(cfg, jax.devices()))


def adam_state(run, step):
    optimizer = make_optimizer(run.config.train, lambda _: 0.0)
    like = jax.eval_shape(lambda: init_train_state(run.config, optimizer, jax.random.key(0)))
    return run.checkpoints.restore_state(step, like).opt_state[1][0]


@pytest.mark.parametrize(
    "left",
    ["a damaged checkpoint", pytest.param("an unfinished checkpoint", marks=pytest.mark.slow)],
)
def test_a_grown_run_that_lost_its_first_checkpoint_grows_again(source, grown, tmp_path, left):
    """It must never begin with a model that was not grown."""
    run = shutil.copytree(grown.workdir, tmp_path / "run")
    first, *others = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for other in others:
        shutil.rmtree(other)
    if left == "an unfinished checkpoint":
        first.rename(run / "checkpoints/0.orbax-checkpoint-tmp")
    else:
        next(first.glob("metrics/metrics")).write_text("{}")
    losses = [line["loss"] for line in read_metrics(run, "train")]
    assert train(grown.config, run)
    assert [line["loss"] for line in read_metrics(run, "train")] == losses


def test_moments_are_fresh_or_grown_from_those_of_the_source(source):
    states = {}
    for moments in ("fresh", "grown"):
        cfg = grown_config(source, growth__moments=moments, growth__placement="spread")
        opened = open_run(source)
        optimizer = make_optimizer(cfg.train, lambda _: 0.0)
        state = grow_from(opened, cfg, optimizer)
        states[moments] = state.opt_state[1][0]
    of_source = adam_state(opened, opened.checkpoints.resolve("best"))
    old = is_old(opened.config.model, cfg.model, "spread")
    assert int(states["fresh"].count) == 0
    assert int(states["grown"].count) == int(of_source.count) == 62
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(states["fresh"].mu))
    for name in ("mu", "nu"):
        grown, before = getattr(states["grown"], name), getattr(of_source, name)
        for x, where in zip(*map(jax.tree.leaves, (grown, old)), strict=True):
            assert not np.asarray(x)[~np.asarray(where)].any()
        embedding, rows = (np.asarray(x["embedding"]["embedding"]) for x in (grown, before))
        where = np.asarray(old["embedding"]["embedding"])
        np.testing.assert_array_equal(embedding[where], rows.ravel())


@pytest.mark.slow
def test_moments_grow_from_a_run_that_was_grown_with_two_rates(source, tmp_path):
    slower = grown_config(source, growth__old_rate=0.5)
    train(slower, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    cfg = grown_config(tmp_path / "run", growth__moments="grown", model__num_layers=3)
    optimizer = make_optimizer(cfg.train, lambda _: 0.0)
    state = grow_from(opened, cfg, optimizer)
    assert int(state.opt_state[1][0].count) == 12
    assert any(np.asarray(x).any() for x in jax.tree.leaves(state.opt_state[1][0].mu))


def test_another_tokenizer_is_refused_and_the_tokenizer_of_the_source_can_be_used(source, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("Ünlü bir köprü. " * 200)
    other = grown_config(source, data__source="text", data__path=str(text))
    with pytest.raises(
        UserError, match=r"id \d+ is another token. Use the source's, with --config.data."
    ):
        train(other, tmp_path / "grown")
    assert not (tmp_path / "grown").exists()
    tokenizer = str(source / "tokenizer.json")
    same = dataclasses.replace(other, data=dataclasses.replace(other.data, tokenizer=tokenizer))
    train(same, tmp_path / "grown")
    assert open_run(tmp_path / "grown").tokenizer.tokens == open_run(source).tokenizer.tokens


def test_shrinking_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(UserError, match=r"cannot shrink: model.head_dim is 8, and would be 4"):
        train(grown_config(source, model__num_heads=8), tmp_path / "grown")
    assert not (tmp_path / "grown").exists()


@pytest.mark.slow
def test_a_larger_vocabulary_of_byte_pairs_changes_nothing_on_the_tokens_of_the_source(
    tmp_path, capsys
):
    bpe = {"data__tokenizer": "bpe", "data__sample_chars": 6000, "train__learning_rate": 3e-3}
    train(config(model__vocab_size=300, **bpe), tmp_path / "source")
    carried = {"train__carry_memory": True, **bpe}
    train(grown_config(tmp_path / "source", model__vocab_size=340, **carried), tmp_path / "grown")
    rows = printed_losses(capsys.readouterr().out)
    (_, source), (name, same), (_, start) = rows
    assert name == "start, without new tokens"
    assert same == pytest.approx(source, abs=2e-6)
    # New tokens start as likely as the ones they merge, but cover more text, at a higher loss.
    assert source < start < source + 2


def test_the_parents_of_a_new_token_are_the_tokens_it_merges():
    texts = ["low lower lowest " * 20]
    small, large = (SubwordTokenizer.train(texts, size) for size in (262, 266))
    assert large.tokens[: small.vocab_size] == small.tokens
    found = parents(small, large, 262, 270)
    for token, pair in zip(itertools.count(262), found, strict=False):
        if token < large.vocab_size:
            assert "".join(large.tokens[of] for of in pair) == large.tokens[token]
            assert max(pair) < token
        else:
            assert pair == ()
    # For characters: new unused rows start as the mean of the old unused rows.
    chars = CharTokenizer("abc")
    assert parents(chars, chars, 8, 10) == [(6, 7), (6, 7)]
