"""Corpora, tokenizer and batches."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import tiny
from mmrec_jax.config import DataConfig, from_mapping
from mmrec_jax.data.corpora import load_corpus, read_text, sample_corpus, split_documents
from mmrec_jax.data.stream import (
    Dataset,
    ShuffledWindows,
    Split,
    encode_documents,
    every_window,
    load_dataset,
)
from mmrec_jax.data.tokenizers import UNKNOWN, CharTokenizer, tokenizer_from_json
from mmrec_jax.errors import UserError
from small_runs import config

TURKISH = "İstanbul'da ılık bir ağaç gölgesi; IŞIK, ÇÖL, ÜZÜM, üzüm, şeker, Ğ.\n"  # noqa: RUF001
PROPERTY = settings(max_examples=100, deadline=None, database=None)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=60)


def numbered(*lengths):
    """Documents of these lengths, in which every token is its own position."""
    total = sum(lengths)
    documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return Split(np.arange(total, dtype=np.int32), documents, total - len(lengths))


# --- sample corpus ---


def test_the_tiny_config_has_126_steps_an_epoch_of_2_x_256():
    cfg = from_mapping(tiny.get_config())
    train = cfg.train
    batches = ShuffledWindows(
        load_dataset(cfg).train, train.batch_size, train.seq_len, seed=train.seed
    )
    assert batches.steps_per_epoch == 126
    assert batches[0].tokens.shape == (2, 256)


def test_the_sample_corpus_depends_on_the_seed_alone():
    assert sample_corpus(3, 5_000) == sample_corpus(3, 5_000)
    assert sample_corpus(3, 5_000) != sample_corpus(4, 5_000)


def test_no_sentence_of_the_sample_corpus_is_there_twice():
    splits = sample_corpus(0, 64_600)
    sentences = [s for split in splits for document in split for s in document.splitlines()]
    assert len(sentences) > 1_000
    assert len(set(sentences)) == len(sentences)


def test_the_sample_corpus_has_the_size_asked_for():
    for split, least in zip(sample_corpus(0, 5_001), (5_001, 501, 501), strict=True):
        assert least <= len("".join(split)) < least + 100


# --- text files ---


def test_one_file_is_cut_into_contiguous_splits(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "a.txt").write_text(text)
    data = DataConfig(source="text", path=str(tmp_path / "a.txt"), test_fraction=0.1)
    train, validation, test = load_corpus(data)
    assert [len(train), len(validation), len(test)] == [1, 1, 1]
    assert train[0] + validation[0] + test[0] == text
    assert len(test[0]) == round(0.1 * len(text))
    assert len(validation[0]) == round(0.05 * len(text))


def test_the_files_of_a_glob_are_documents_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.txt").write_text("b" * 100)
    (tmp_path / "a.txt").write_text("a" * 50)
    (tmp_path / "c.md").write_text("c")
    corpus = load_corpus(DataConfig(source="text", path=str(tmp_path / "*.txt")))
    split = encode_documents(corpus.train, CharTokenizer("ab"))
    np.testing.assert_array_equal(split.documents, [0] * 50 + [1] * (len(split.tokens) - 50))
    np.testing.assert_array_equal(split.tokens, split.documents + 1)
    assert "".join(itertools.chain(*corpus)) == "a" * 50 + "b" * 100


@PROPERTY
@given(
    st.lists(st.text("xyz", min_size=1, max_size=30), min_size=1, max_size=6),
    st.floats(0.01, 0.49),
    st.floats(0.01, 0.49),
)
def test_splits_concatenate_to_the_corpus(documents, validation_fraction, test_fraction):
    splits = split_documents(documents, validation_fraction, test_fraction)
    assert "".join(itertools.chain(*splits)) == "".join(documents)
    total = sum(map(len, documents))
    assert len("".join(splits.test)) == round(test_fraction * total)
    # Every boundary between two files is still one, unless a split ends there.
    ends = set(itertools.accumulate(map(len, itertools.chain(*splits))))
    assert ends >= set(itertools.accumulate(map(len, documents)))


def test_turkish_text_trains_the_tokenizer_and_round_trips(tmp_path):
    (tmp_path / "a.txt").write_text(TURKISH * 40, encoding="utf-8")
    dataset = load_dataset(config(data__source="text", data__path=str(tmp_path / "a.txt")))
    assert set("İıŞşĞğÇçÖöÜü") <= set(dataset.tokenizer.characters)
    assert dataset.tokenizer.characters == tuple(sorted(set(TURKISH)))
    splits = dataset.train, dataset.validation, dataset.test
    decoded = [dataset.tokenizer.decode(split.tokens.tolist()) for split in splits]
    assert "".join(decoded) == TURKISH * 40
    for split, text in zip(splits, decoded, strict=True):
        assert split.num_bytes == len(text[1:].encode())


def test_the_tokenizer_sees_the_training_split_alone(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 500 + "!")
    dataset = load_dataset(config(data__source="text", data__path=str(tmp_path / "a.txt")))
    assert dataset.tokenizer.characters == tuple("abcd")
    assert dataset.test.tokens[-1] == UNKNOWN


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffşu".encode())
    assert read_text(tmp_path / "a.txt") == "şu"


@pytest.mark.parametrize(("mark", "byte"), [(b"", 6), (b"\xef\xbb\xbf", 9)])
def test_a_file_that_is_not_utf_8_is_refused_by_byte_and_line(tmp_path, mark, byte):
    (tmp_path / "a.txt").write_bytes(mark + b"one\nab\xfe two")
    with pytest.raises(UserError, match=rf"a\.txt.*byte {byte} \(line 2\) is 0xfe"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        read_text(tmp_path / "a.txt")


# --- tokenizer ---


@PROPERTY
@given(TEXT)
def test_decoding_what_was_encoded_gives_any_text_back(text):
    tokenizer = CharTokenizer.train([text], vocab_size=1_000)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert UNKNOWN not in tokens
    assert tokenizer.decode(tokens.tolist()) == text


@PROPERTY
@given(TEXT, TEXT)
def test_a_tokenizer_survives_json(trained_on, text):
    tokenizer = CharTokenizer.train([trained_on], vocab_size=20)
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.characters == tokenizer.characters
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


@PROPERTY
@given(TEXT, TEXT)
def test_unknown_characters_are_id_0_and_read_as_the_replacement_character(known, text):
    tokenizer = CharTokenizer.train([known], vocab_size=1_000)
    tokens = tokenizer.encode(text)
    assert [token == UNKNOWN for token in tokens] == [c not in known for c in text]
    assert tokenizer.decode(tokens.tolist()) == "".join(c if c in known else "\ufffd" for c in text)


def test_a_vocabulary_too_small_keeps_the_most_frequent_characters():
    tokenizer = CharTokenizer.train(["zzz", "xyyx", "ab"], vocab_size=4)
    assert tokenizer.characters == ("x", "y", "z")
    assert tokenizer.vocab_size == 4
    # Of characters as frequent as each other the first by code point stay.
    assert CharTokenizer.train(["zzz", "xyyx", "ab"], vocab_size=3).characters == ("x", "z")
    assert CharTokenizer.train(["ba"], vocab_size=2).decode([0, 1]) == "\ufffda"


def test_the_replacement_character_in_a_text_is_the_unknown_token():
    tokenizer = CharTokenizer.train(["a\ufffd\ufffd"], vocab_size=10)
    assert tokenizer.characters == ("a",)
    np.testing.assert_array_equal(tokenizer.encode("\ufffda"), [UNKNOWN, 1])


# --- training batches ---


def test_every_window_comes_exactly_once_an_epoch():
    batches = ShuffledWindows(numbered(12 * 5 + 1), batch_size=3, seq_len=5, seed=0)
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        tokens = np.concatenate([batches[step].tokens for step in steps])
        rows = tokens[tokens[:, 0].argsort()]
        np.testing.assert_array_equal(rows, np.arange(60).reshape(12, 5))


def test_windows_that_fill_no_batch_are_left_out_in_turn():
    batches = ShuffledWindows(numbered(13 * 5 + 1), batch_size=3, seq_len=5, seed=0)
    assert batches.steps_per_epoch == 4
    left_out = set()
    for epoch in range(10):
        starts = [x for i in range(4) for x in batches[4 * epoch + i].tokens[:, 0]]
        assert len(set(starts)) == 12
        left_out |= set(range(0, 65, 5)) - set(starts)
    assert len(left_out) > 1


def test_a_batch_is_a_function_of_the_step_alone():
    split = numbered(30, 31)
    one, other = (ShuffledWindows(split, batch_size=3, seq_len=5, seed=7) for _ in range(2))
    forwards = [one[step] for step in range(12)]
    backwards = [other[step] for step in reversed(range(12))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_epochs_and_seeds_have_orders_of_their_own():
    def starts(seed, epoch):
        batches = ShuffledWindows(numbered(12 * 5 + 1), batch_size=3, seq_len=5, seed=seed)
        return tuple(x for i in range(4) for x in batches[4 * epoch + i].tokens[:, 0])

    assert len({starts(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_targets_are_the_next_tokens_and_count_within_a_document():
    batches = ShuffledWindows(numbered(27, 34), batch_size=3, seq_len=5, seed=0)
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
        np.testing.assert_array_equal(batch.documents, split.documents[batch.tokens])
        predicted += list(batch.targets[counted])
    firsts = {0, *itertools.accumulate(lengths[:-1])}
    assert sorted(predicted) == sorted(set(range(sum(lengths))) - firsts)
    assert sum(batch.weights.sum() for batch in batches) == sum(lengths) - len(lengths)


def test_num_bytes_are_those_of_the_characters_that_are_predicted():
    tokenizer = CharTokenizer.train([TURKISH], vocab_size=100)
    split = encode_documents(["ağa", "şok", "ö", "x€😀"], tokenizer)
    assert split.num_bytes == (2 + 1) + (1 + 1) + 0 + (3 + 4)  # unknown ones count as well


# --- fingerprint ---


def test_the_fingerprint_changes_with_a_token_a_boundary_and_a_split():
    tokenizer = CharTokenizer("abc")

    def fingerprint(train, validation="ab", test="ab"):
        documents = train, [validation], [test]
        return Dataset(
            tokenizer, *(encode_documents(d, tokenizer) for d in documents)
        ).fingerprint()

    original = fingerprint(["abc", "cab"])
    assert original == fingerprint(["abc", "cab"])
    others = [
        fingerprint(["abc", "caa"]),  # a token
        fingerprint(["ab", "ccab"]),  # a boundary
        fingerprint(["abccab"]),
        fingerprint(["abc", "ca"], validation="bab"),  # from one split to the next
        fingerprint(["abc", "cab"], validation="aba", test="b"),
    ]
    assert len({original, *others}) == 6


def test_too_little_text_is_refused_with_the_number_of_tokens_needed():
    cfg = config(data__sample_chars=10, train__batch_size=4)
    with pytest.raises(UserError, match="one batch of 4 x 32 needs 129"):
        load_dataset(cfg)


def test_a_split_with_nothing_to_predict_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 500)
    cfg = config(data__source="text", data__path=str(tmp_path / "a.txt"))
    data = dataclasses.replace(cfg.data, test_fraction=0.0005)
    with pytest.raises(UserError, match=r"test split has no token.*data\.test_fraction"):
        load_dataset(dataclasses.replace(cfg, data=data))
