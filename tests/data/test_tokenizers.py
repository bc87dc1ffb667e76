"""Tokenizers: text survives a round trip, also as a stream; larger vocabularies keep tokens."""

import functools
import itertools
import json

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmrec_jax.data.sources.sample import sample_texts
from mmrec_jax.data.tokenizers import (
    DOCUMENT,
    PADDING,
    ByteTokenizer,
    CharTokenizer,
    SubwordTokenizer,
    document_tokens,
    load_tokenizer,
    tokenizer_from_json,
)
from mmrec_jax.errors import UserError

PROPERTY = settings(max_examples=200, deadline=None, database=None)
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=60)
TURKISH = "İstanbul'da ılık bir ağaç gölgesi; IŞIK, ÇÖL, ÜZÜM, üzüm, şeker, Ğ.\n"  # noqa: RUF001
ENGLISH = sample_texts(0, 20_000)[0]


@functools.cache
def bpe(vocab_size=400):
    lines = (ENGLISH + TURKISH * 40).splitlines(keepends=True)
    return SubwordTokenizer.train(lines, vocab_size)


@functools.cache
def users_own():
    """A tokenizer as others make them: with a special token, a template, truncation and padding."""
    tokenizer = hf.Tokenizer(hf.models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    trainer = hf.trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<s>"],
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([ENGLISH], trainer)
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(length=16, pad_token="<s>")
    return tokenizer.to_str()


def lossless(folder):
    path = folder / "tokenizer.json"
    path.write_text(users_own())
    return {"byte": ByteTokenizer(), "bpe": bpe(), "file": load_tokenizer(path)}


@pytest.fixture(scope="module", params=["byte", "bpe", "file"])
def tokenizer(request, tmp_path_factory):
    return lossless(tmp_path_factory.mktemp("tokenizers"))[request.param]


@PROPERTY
@given(ANY_TEXT)
@example("<doc><pad><s> <doc>")
@example("\x00\ufeff\ufffd\r\n\u2028 \U0010ffff e\u0301 ﬁ")
@example("   \n\n\t  a")
@example("ağaç 🙂" * 500)
def test_any_text_survives_a_round_trip(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert set(tokens.tolist()) <= set(tokenizer.text_ids)
    assert tokenizer.decode(tokens) == text
    assert "".join(tokenizer.pieces(tokens.tolist())) == text
    again = tokenizer_from_json(tokenizer.to_json())
    np.testing.assert_array_equal(again.encode(text), tokens)
    assert again.decode(tokens) == text
    assert again.vocab_size == tokenizer.vocab_size


@PROPERTY
@given(st.text(st.sampled_from("aş€🙂"), max_size=12))
def test_a_stream_never_shows_part_of_a_character(tokenizer, text):
    shown = itertools.accumulate(tokenizer.pieces(tokenizer.encode(text).tolist()), initial="")
    assert all(map(text.startswith, shown))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_cut_character_is_one_replacement_character_at_the_end(length):
    for tokenizer in (ByteTokenizer(), SubwordTokenizer.train(["a"], 300)):
        tokens = tokenizer.encode("a🙂")[: 1 + length]
        assert list(filter(None, tokenizer.pieces(tokens.tolist()))) == ["a", "\ufffd"]


def test_special_tokens_stand_for_no_text(tokenizer):
    specials = [tokenizer.padding, tokenizer.document]
    assert not set(specials) & set(tokenizer.text_ids)
    assert len({*specials, *tokenizer.text_ids}) == len(tokenizer.text_ids) + 2
    assert max(*specials, *tokenizer.text_ids) == tokenizer.vocab_size - 1
    tokens = document_tokens(tokenizer, "ab")
    assert tokens[0] == tokenizer.document
    assert tokenizer.decode([*tokens, tokenizer.padding]) == "ab"
    assert "".join(tokenizer.pieces(tokens.tolist())) == "ab"


def test_bytes_are_the_bytes_of_utf_8():
    assert ByteTokenizer().encode("aş\x00").tolist() == [2 + 97, 2 + 0xC5, 2 + 0x9F, 2]


# --- bpe ---


def names(tokenizer):
    return tokenizer.tokens


def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_one():
    small, large = bpe(400), bpe(550)
    assert (small.vocab_size, large.vocab_size) == (400, 550)
    assert names(large)[:400] == names(small)
    merges = [json.loads(t.to_json())["tokenizer"]["model"]["merges"] for t in (small, large)]
    assert len(merges[0]) == 400 - 258
    assert merges[1][: len(merges[0])] == merges[0]
    assert names(small)[:2] == ["<pad>", "<doc>"]
    assert (small.padding, small.document) == (PADDING, DOCUMENT)


def test_bpe_merges_the_most_frequent_pair_first():
    """By hand: in "abab abc" (words "abab", " abc"), a+b occurs three times, no other pair does."""
    tokenizer = SubwordTokenizer.train(["abab abc"] * 2, 259)
    assert names(tokenizer)[258:] == ["ab"]
    assert len(tokenizer.encode("abab abc")) == 5  # ab ab, space ab c


def test_bpe_needs_fewer_tokens_for_what_it_was_trained_on():
    assert len(bpe().encode(TURKISH)) < len(TURKISH.encode()) / 2


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(UserError, match=r"model\.vocab_size is 257; .* needs at least 258"):
        SubwordTokenizer.train(["a"], 257)


def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*none\.json: No such file"):
        load_tokenizer(tmp_path / "none.json")


# --- char ---


@PROPERTY
@given(TEXT)
def test_known_characters_survive_a_round_trip(text):
    tokenizer = CharTokenizer.train([text], vocab_size=1_000)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert tokenizer.unknown not in tokens
    assert tokenizer.decode(tokens.tolist()) == text


@PROPERTY
@given(TEXT, TEXT)
def test_a_character_tokenizer_survives_json(trained_on, text):
    tokenizer = CharTokenizer.train([trained_on], vocab_size=20)
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.characters == tokenizer.characters
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


@PROPERTY
@given(TEXT, TEXT)
def test_unknown_characters_have_one_id_that_decodes_to_the_replacement_character(known, text):
    tokenizer = CharTokenizer.train([known], vocab_size=1_000)
    tokens = tokenizer.encode(text)
    assert [token == tokenizer.unknown for token in tokens] == [c not in known for c in text]
    assert tokenizer.decode(tokens.tolist()) == "".join(c if c in known else "\ufffd" for c in text)


def test_a_vocabulary_that_is_too_small_keeps_the_most_frequent_characters():
    tokenizer = CharTokenizer.train(["zzz", "xyyx", "ab"], vocab_size=6)
    assert tokenizer.characters == ("x", "y", "z")
    assert tokenizer.vocab_size == 6
    # Among equally frequent characters, the first by code point stay.
    assert CharTokenizer.train(["zzz", "xyyx", "ab"], vocab_size=5).characters == ("x", "z")
    assert CharTokenizer.train(["ba"], vocab_size=4).decode([0, 1, 2, 3]) == "\ufffda"
    assert CharTokenizer.train(["ba"], vocab_size=2).characters == ()


def test_the_replacement_character_in_a_text_is_the_unknown_token():
    tokenizer = CharTokenizer.train(["a\ufffd\ufffd"], vocab_size=10)
    assert tokenizer.characters == ("a",)
    np.testing.assert_array_equal(tokenizer.encode("\ufffda"), [tokenizer.unknown, 3])


def test_turkish_characters_are_tokens_of_their_own():
    tokenizer = CharTokenizer.train([TURKISH], 100)
    assert set("İıŞşĞğÇçÖöÜü") <= set(tokenizer.characters)
    assert tokenizer.characters == tuple(sorted(set(TURKISH)))
