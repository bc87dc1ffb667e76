"""Sources of text: what they yield, and what they report about bad input."""

import gzip
import itertools
import json
import lzma
import multiprocessing
import pydoc_data.topics

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.config import DataConfig
from mmrec_jax.data import encoding
from mmrec_jax.data.corpus import SPLITS, Corpus, Part, Piece, split_pieces
from mmrec_jax.data.encoding import blocks, encode_block, encoder
from mmrec_jax.data.sources import open_corpus, text_files
from mmrec_jax.data.sources.sample import sample_texts
from mmrec_jax.data.sources.text_files import stream_text
from mmrec_jax.data.tokenizers import ByteTokenizer, CharTokenizer, SubwordTokenizer
from mmrec_jax.errors import UserError

PROPERTY = settings(max_examples=100, deadline=None, database=None)


def whole(pieces):
    """The documents of a stream of pieces."""
    documents = []
    for text, begins in pieces:
        if begins:
            documents.append("")
        documents[-1] += text
    return documents


def splits_of(corpus: Corpus):
    """The documents of each split."""
    found = {name: [] for name in SPLITS}
    for part in corpus.parts:
        total = sum(len(piece.text) for piece in part.pieces())
        for name, piece in split_pieces(part, total):
            found[name].append(piece)
    return tuple(whole(found[name]) for name in SPLITS)


def documents_of(**values):
    """All documents of a source, whatever their split."""
    corpus = open_corpus(DataConfig(**values))
    return [document for part in corpus.parts for document in whole(part.pieces())]


# --- generated text ---


def test_the_sample_corpus_depends_on_the_seed_alone():
    assert sample_texts(3, 5_000) == sample_texts(3, 5_000)
    assert sample_texts(3, 5_000) != sample_texts(4, 5_000)


def test_no_sentence_of_the_sample_corpus_occurs_twice():
    sentences = [s for text in sample_texts(0, 64_600) for s in text.splitlines()]
    assert len(sentences) > 1_000
    assert len(set(sentences)) == len(sentences)


def test_the_sample_corpus_has_the_requested_size():
    for text, least in zip(sample_texts(0, 5_001), (5_001, 501, 501), strict=True):
        assert least <= len(text) < least + 100
    sample = splits_of(open_corpus(DataConfig(source="sample", sample_chars=5_001)))
    assert sample == tuple([text] for text in sample_texts(0, 5_001))


def test_pythons_documentation_is_prose_in_documents():
    documents = documents_of(source="python_docs")
    assert sorted(documents) == sorted(pydoc_data.topics.topics.values())
    assert sum(map(len, documents)) > 300_000


# --- splits ---


@PROPERTY
@given(
    st.lists(st.text("xyz", min_size=1, max_size=30), min_size=1, max_size=6),
    st.floats(0.01, 0.49),
    st.floats(0, 0.49),
    st.integers(1, 40),
)
def test_splits_concatenate_to_the_corpus(documents, validation, test, size):
    def pieces():
        for document in documents:
            for i in range(0, len(document), size):
                yield Piece(document[i : i + size], begins=i == 0)

    shares = ("train", 1 - validation - test), ("validation", validation), ("test", test)
    splits = splits_of(Corpus((Part(pieces, shares),)))
    assert "".join(itertools.chain(*splits)) == "".join(documents)
    total = sum(map(len, documents))
    lengths = [len("".join(split)) for split in splits]
    assert lengths[1:] == [round(validation * total), round(test * total)]
    # Every boundary between two documents is still one, and so is the end of a split.
    ends = set(itertools.accumulate(map(len, itertools.chain(*splits))))
    assert ends == {*itertools.accumulate(map(len, documents)), *itertools.accumulate(lengths)} - {
        0
    }


def test_one_file_is_cut_into_contiguous_splits(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "a.txt").write_text(text)
    data = DataConfig(source="text", path=str(tmp_path / "a.txt"), test_fraction=0.1)
    train, validation, test = splits_of(open_corpus(data))
    assert [len(train), len(validation), len(test)] == [1, 1, 1]
    assert train[0] + validation[0] + test[0] == text
    assert len(test[0]) == round(0.1 * len(text))
    assert len(validation[0]) == round(0.05 * len(text))


# --- files ---


def test_files_are_documents_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.txt").write_text("b" * 100)
    (tmp_path / "a.txt").write_text("a" * 50)
    (tmp_path / "c.md").write_text("c")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.txt").write_text("d")
    (tmp_path / ".hidden").write_text("no")
    texts = ["a" * 50, "b" * 100]
    assert documents_of(source="text", path=str(tmp_path / "*.txt")) == texts
    assert documents_of(source="text", path=str(tmp_path / "**/*.txt")) == [*texts, "d"]
    assert documents_of(source="text", path=str(tmp_path)) == [*texts, "c", "d"]
    with pytest.raises(UserError, match=r"matches no files \(relative to /"):
        open_corpus(DataConfig(source="text", path=str(tmp_path / "*.tx")))


def compressed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":  # two members, as `cat a.gz b.gz` makes them
        return gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    if suffix == ".xz":
        return lzma.compress(data[:1000]) + lzma.compress(data[1000:])
    if suffix == ".zst":
        compress = zstandard.ZstdCompressor().compress
        return compress(data[:1000]) + compress(data[1000:])
    return data


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_compressed_files_yield_what_is_in_them(tmp_path, suffix):
    text = "ağaç 🙂 line\r\n" * 200_000  # more than one block
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed(b"\xef\xbb\xbf" + text.encode(), suffix))
    assert documents_of(source="text", path=str(path)) == [text]
    lines = [json.dumps({"body": f"{i} ş\n🙂", "n": i}) for i in range(999)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compressed("\n\n".join(lines).encode(), suffix))
    expected = [f"{i} ş\n🙂" for i in range(999)]
    assert documents_of(source="jsonl", path=str(path), field="body") == expected
    assert documents_of(source="jsonl", path=str(tmp_path), field="body") == expected
    if suffix:
        whole_file = path.read_bytes()
        path.write_bytes(whole_file[: len(whole_file) // 2])
        with pytest.raises(UserError, match=rf"cannot read .*a\.jsonl{suffix}: "):
            documents_of(source="jsonl", path=str(path), field="body")


def refusal(path, content: bytes, **values) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        documents_of(**{"source": "text", "path": str(path), **values})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("before", [0, text_files.BLOCK - 8, text_files.BLOCK - 7, 3_000_000])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_that_is_not_utf_8_is_refused_with_its_byte_and_line(tmp_path, mark, before):
    good = (b"x" * 99 + b"\n") * (before // 100) + b"y" * (before % 100)
    content = mark + good + "one\nç".encode() + b"\xfe two"
    message = refusal(tmp_path / "a.txt", content)
    place = len(mark) + before + 6
    assert f"a.txt is not UTF-8 text: byte {place} (line {before // 100 + 2}) is 0xfe" in message


def test_half_a_character_at_the_end_is_refused(tmp_path):
    message = refusal(tmp_path / "a.txt", "ab\nş".encode()[:-1])
    assert "byte 3 (line 2) is 0xc5" in message


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    assert "a.txt is empty" in refusal(tmp_path / "a.txt", content)


def test_a_binary_file_is_refused(tmp_path):
    message = refusal(tmp_path / "a.txt", b"\x7fELF\x02\x01\x01\x00\x00")
    assert "a.txt is a binary file, or not UTF-8 text: byte 7 is zero" in message
    assert "a.txt is a binary file" in refusal(tmp_path / "a.txt", "text".encode("utf-16-le"))


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        (b"{'text': 1}", "line 3 is not JSON: Expecting property name"),
        (b'{"text": "a', "line 3 is not JSON: Unterminated string"),
        (b'{"text": "\xff"}', "line 3 is not UTF-8 text: byte 10 of the line"),
        (b'["text"]', "line 3 has no field 'text'"),
        (b'{"body": "a", "id": 1}', "line 3 has no field 'text'; it has 'body', 'id'"),
        (b'{"text": 5}', "line 3: field 'text' must be a string, not int"),
        (b'{"text": "\\ud800"}', "line 3 has half a surrogate pair"),
        (b"[" * 100_000, "line 3 is not JSON"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(tmp_path, line, fragment):
    content = b'{"text": "good"}\n\n' + line + b"\n"
    assert fragment in refusal(tmp_path / "a.jsonl", content, source="jsonl")


def test_a_json_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 100)
    message = refusal(tmp_path / "a.jsonl", b'{"text": "' + b"a" * 200, source="jsonl")
    assert "line 1 is longer than 100 bytes" in message
    assert "has no text in field" in refusal(tmp_path / "a.jsonl", b"\n\n", source="jsonl")


# --- blocks ---


DOCUMENTS = st.lists(
    st.lists(st.sampled_from(["a b", "\n", "\n\n", "ş", "word ", " "]), min_size=1, max_size=30),
    min_size=1,
    max_size=5,
)


@PROPERTY
@given(DOCUMENTS, st.integers(4, 40), st.integers(1, 50))
def test_blocks_are_the_same_however_the_pieces_are_cut(parts, size, cut):
    documents = ["".join(part) for part in parts]

    def pieces(length):
        for document in documents:
            for i in range(0, len(document), length):
                yield Piece(document[i : i + length], begins=i == 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "BLOCK", size)
        found = list(blocks(pieces(cut)))
        assert found == list(blocks(pieces(10_000)))
        assert whole(itertools.chain(*found)) == documents
        assert max(sum(len(piece.text) for piece in block) for block in found) <= size


def test_a_long_document_has_the_tokens_of_its_lines(monkeypatch):
    """Documents are cut at line ends that no token spans, so blocks change no token."""
    text = "".join(f"line {i}, a brave sailor\n" + "\n  \n" * (i % 3 == 0) for i in range(500))
    tokenizer = SubwordTokenizer.train(text.splitlines(keepends=True), 320)
    at_once = encode_block(tokenizer, [Piece(text, begins=True)])
    monkeypatch.setattr(encoding, "BLOCK", 100)
    several = [encode_block(tokenizer, block) for block in blocks([Piece(text, begins=True)])]
    assert len(several) > 50
    np.testing.assert_array_equal(np.concatenate([x.tokens for x in several]), at_once.tokens)
    assert sum(x.characters for x in several) == at_once.characters
    assert tuple(map(sum, zip(*(x.counts for x in several), strict=True))) == at_once.counts


def test_one_enormous_line_is_read_in_blocks(tmp_path):
    text = "ş" * 3_000_000
    (tmp_path / "a.txt").write_text(text)
    pieces = [Piece(part, begins=i == 0) for i, part in enumerate(stream_text(tmp_path / "a.txt"))]
    found = list(blocks(pieces))
    assert all(len(block) == 1 and len(block[0].text) <= encoding.BLOCK for block in found)
    assert whole(itertools.chain(*found)) == [text]


def test_counts_of_a_block():
    tokenizer = CharTokenizer(sorted("abş"))
    pieces = [Piece("aş x\n", begins=True), Piece("\n€b b", begins=False)]
    block = encode_block(tokenizer, pieces)
    assert block.tokens.tolist() == [1, 3, 5, 2, 2, 2, 2, 2, 4, 2, 4]
    expected = {"tokens": 11, "documents": 1, "unknown": 6, "num_words": 4, "num_lines": 2}
    expected["num_bytes"] = len("aş x\n\n€b b".encode())
    assert (block.characters, block.counts._asdict()) == (10, expected)


def test_several_processes_encode_as_one_does(monkeypatch):
    text = [[Piece("ağaç\n" * n, begins=n % 2 == 0)] for n in range(1, 40)]
    tokenizer = ByteTokenizer()
    alone = [encode_block(tokenizer, block) for block in text]
    with encoder(tokenizer, characters=encoding.LARGE) as encode:
        found = list(encode(enumerate(text)))
        assert [number for number, _ in found] == list(range(len(text)))
        for (_, one), other in zip(found, alone, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            assert one[1:] == other[1:]
        assert multiprocessing.active_children()
