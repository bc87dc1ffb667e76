"""Generation, compared with reading the complete text again for every token."""

import functools
import itertools
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import helpers
import mmrec_jax
from mmrec_jax.data.tokenizers import document_tokens
from mmrec_jax.errors import UserError
from mmrec_jax.inference import generation
from mmrec_jax.inference.generation import Generator, Sampling, draw, until_stop
from small_runs import ROOT, one_error_line

CHUNK = 4
GREEDY = Sampling(temperature=0.0)


@functools.cache
def generator(used_vocab=helpers.VOCAB):
    config = helpers.small_config()
    return Generator(config, helpers.random_params(config), range(used_vocab))


def written(session, count, sampling, used_vocab=helpers.VOCAB):
    rows = [tokens for tokens, _ in generator(used_vocab).write(session, count, sampling)]
    return np.array(rows).T


def test_greedy_generation_in_a_batch_equals_rereading_each_text():
    config = helpers.small_config()
    lengths, count = (2 * CHUNK + 3, 1, CHUNK), 3 * CHUNK
    prompts = [helpers.random_tokens(1, n, seed=n)[0] for n in lengths]
    session = generator().read(generator().start(3), prompts)
    tokens = written(session, count, GREEDY)
    assert len(np.unique(tokens)) > 2
    forward = helpers.forward(config)
    for prompt, text in zip(prompts, tokens, strict=True):
        # Padding after a token does not affect its logits.
        padded = np.zeros((1, 24), np.int32)
        whole = [*prompt, *text]
        padded[0, : len(whole)] = whole
        logits = forward(helpers.random_params(config), padded, np.zeros_like(padded)).logits[0]
        expected = np.argmax(logits[len(prompt) - 1 : len(whole) - 1], axis=-1)
        np.testing.assert_array_equal(text, expected)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_does_not():
    session = generator().read(generator().start(), [helpers.random_tokens(1, 5)[0]])
    one, again, other = (
        written(session, 30, Sampling(temperature=30.0, seed=seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def test_groups_of_tokens_are_what_single_tokens_are(monkeypatch):
    """With no time for more, every group is of one token."""
    session = generator().read(generator().start(), [helpers.random_tokens(1, 5)[0]])
    sampling = Sampling(temperature=3.0, top_k=20, top_p=0.9)
    grouped = written(session, 70, sampling)
    monkeypatch.setattr(generation, "GROUP_SECONDS", 0.0)
    np.testing.assert_array_equal(written(session, 70, sampling), grouped)


def test_the_session_after_any_token_is_that_of_reading_the_text_so_far():
    prompt = helpers.random_tokens(1, 50)[0]  # longer than a group, so read in chunks
    session = generator().read(generator().start(), [prompt])
    text = list(prompt)
    for count, (token, after) in enumerate(generator().write(session, 40, GREEDY), start=1):
        text.append(token[0])
        if count % 7 == 0:
            expected = generator().read(generator().start(), [np.array(text)])
            np.testing.assert_allclose(after().logits, expected.logits, rtol=1e-4, atol=1e-5)
            assert (after().drawn, after().read[0]) == (count, len(text))


def test_ids_unused_by_the_tokenizer_are_never_drawn():
    used = helpers.VOCAB // 2
    session = generator(used).read(generator(used).start(), [helpers.random_tokens(1, 5)[0]])
    tokens = written(session, 80, Sampling(temperature=30.0), used)
    assert tokens.max() < used
    assert len(np.unique(tokens)) > used // 2


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="prompt is empty"):
        next(generator().write(generator().start(), 3, GREEDY))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_sampling_out_of_range_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(0, 1.0, 5), (2, 1.0, 2), (9, 1.0, 5), (0, 0.45, 1), (0, 0.6, 2), (0, 0.95, 4), (3, 0.5, 1)],
)
def test_draws_follow_the_remaining_probabilities(top_k, top_p, kept):
    """Probabilities 0.5 0.2 0.15 0.1 0.05, shuffled; top-p applies to what top-k leaves."""
    probabilities = np.array([0.1, 0.5, 0.05, 0.2, 0.15])
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = jnp.log(probabilities)[None]
    drawn = jax.vmap(lambda key: draw(logits, key, jnp.array(1.0), top_k, top_p))(keys)
    frequencies = np.bincount(np.asarray(drawn).ravel(), minlength=5) / len(keys)
    expected = np.where(np.argsort(np.argsort(-probabilities)) < kept, probabilities, 0)
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.035)
    np.testing.assert_array_equal(frequencies > 0, expected > 0)


@settings(deadline=None)
@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_a_stream_ends_before_the_first_stop_string_however_it_is_cut(text, stops, sizes):
    ends = itertools.accumulate(sizes)
    pieces = [text[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    unread = iter(pieces)
    shown = "".join(until_stop(unread, stops))
    pieces = pieces[: len(pieces) - len(list(unread))]
    read = "".join(pieces)
    ends = [read.find(stop) for stop in stops if stop in read]
    # A single piece may hold two stop strings: the earlier one counts.
    assert shown == (read[: min(ends)] if ends else text)
    # Nothing is read beyond the piece that completes a stop string.
    assert not any(stop in "".join(pieces[:-1]) for stop in stops)


# --- a trained model in Python, and its sessions ---


@pytest.fixture(scope="module")
def workdir(trained_run, tmp_path_factory):
    return shutil.copytree(trained_run, tmp_path_factory.mktemp("generation") / "run")


@pytest.fixture(scope="module")
def lm(workdir):
    return mmrec_jax.load(workdir, "final")


def test_a_batch_writes_what_each_prompt_would_get_alone(lm):
    prompts = ["The old ", "A", "The young queen and the"]
    for prompt, text in zip(prompts, lm.generate(prompts, 20, temperature=0), strict=True):
        assert len(text) == 20
        ids = document_tokens(lm.tokenizer, prompt + text)
        logits = lm.logits(ids)[len(prompt) : -1]
        chosen = logits[np.arange(20), ids[len(prompt) + 1 :]]
        logits = logits[:, lm.tokenizer.text_ids]
        # Two tokens may be equally likely up to rounding.
        np.testing.assert_allclose(chosen, logits.max(axis=1), rtol=0, atol=1e-5)
    assert lm.generate([]) == []


def test_without_a_prompt_a_document_starts(lm):
    text = lm.generate("", 20, temperature=0)
    logits = lm.logits(document_tokens(lm.tokenizer, text))[:-1, lm.tokenizer.text_ids]
    ids = lm.tokenizer.encode(text) - lm.tokenizer.text_ids.start
    np.testing.assert_allclose(logits[np.arange(20), ids], logits.max(axis=1), rtol=0, atol=1e-5)


def test_a_stream_is_the_text_piece_by_piece(lm):
    pieces = list(lm.stream("The old ", 20, seed=1))
    assert len(pieces) == 20
    assert "".join(pieces) == lm.generate("The old ", 20, seed=1)


def test_text_ends_before_a_stop_string(lm):
    whole = lm.generate("The old ", 40, temperature=1.0)
    stop = whole[20:23]
    assert lm.generate("The old ", 40, stop=[stop], temperature=1.0) == whole[: whole.find(stop)]


def test_logits_and_perplexity_equal_those_of_a_single_pass(lm):
    text = "The old king and the queen. " * 20
    ids = document_tokens(lm.tokenizer, text)
    logits = lm.logits(ids).astype(np.float64)
    assert logits.shape == (len(ids), lm.config.model.vocab_size)
    padded = np.resize(ids, (1, 1024))
    forward = helpers.forward(lm.config.model)
    whole = forward(lm.params, padded, np.zeros_like(padded)).logits[0, : len(ids)]
    np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-5)
    losses = np.log(np.exp(logits).sum(axis=1))[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]
    assert lm.perplexity(text) == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    with pytest.raises(UserError, match="the text has nothing to predict"):
        lm.perplexity("")


def generate(workdir, *flags):
    return subprocess.run(
        [sys.executable, str(ROOT / "generate.py"), f"--workdir={workdir}", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )


def test_a_session_continues_in_a_new_process_as_if_it_had_not_stopped(lm, workdir, tmp_path):
    session = lm.session()
    session.read("The old king")
    session.save(tmp_path / "session")
    unbroken = session.generate("", 30, seed=3)
    session.save(tmp_path / "later")
    further = session.generate(" A queen", 10, seed=3)
    assert session.tokens_read == 1 + 12 + 30 + 8 + 10  # the first starts the document

    flags = ["--checkpoint=final", f"--session={tmp_path / 'session'}", "--seed=3"]
    done = generate(workdir, *flags, "--tokens=30")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == unbroken + "\n"
    done = generate(workdir, *flags, "--tokens=10", "--prompt= A queen")
    assert done.stdout == f" A queen{further}\n"  # the previous process had saved what it wrote
    assert lm.session(tmp_path / "later").generate(" A queen", 10, seed=3) == further
    assert sorted(path.name for path in tmp_path.iterdir()) == ["later", "session"]


def test_sessions_that_cannot_be_continued_are_refused(lm, workdir, tmp_path):
    session = lm.session()
    session.read("The")
    session.save(tmp_path / "session")
    other = mmrec_jax.load(workdir, "20")
    with pytest.raises(UserError, match="belongs to another model or another checkpoint"):
        other.session(tmp_path / "session")
    (tmp_path / "broken").write_bytes((tmp_path / "session").read_bytes()[:1000])
    with pytest.raises(UserError, match="broken is not a readable session"):
        lm.session(tmp_path / "broken")
    with pytest.raises(UserError, match="there is no session"):
        lm.session(tmp_path / "none")
    with pytest.raises(UserError, match=r"cannot save the session to .*No such file"):
        session.save(tmp_path / "no" / "session")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--session=s", "--prompt=a", "--prompt=b"],
            "--session can be used with only one --prompt",
        ),
        (["--prompt=a", "--top_p=2"], "top_p is 2.0; it must be above 0 and at most 1"),
    ],
)
def test_bad_flags_give_one_error_line(workdir, flags, message):
    done = generate(workdir, *flags)
    assert one_error_line(done).startswith(f"error: {message}")
