"""Token files: what they contain, and when they are made anew."""

import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax import checksums
from mmrec_jax.data import token_cache, token_files
from mmrec_jax.data.corpus import SPLITS
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.data.prepare import prepare
from mmrec_jax.data.sources.sample import sample_texts
from mmrec_jax.data.token_cache import copy_splits, open_prepared
from mmrec_jax.data.token_files import TokenReader, TokenWriter
from small_runs import config

TEXT = sample_texts(5, 4_000)[0].replace("e", "ğ")


def text_config(path, **values):
    return config(**{"data__source": "text", "data__path": str(path), **values})


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def prepared(cfg):
    """The token files of a config, and the printed messages."""
    said = []
    return prepare(cfg, said.append), said


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- files of tokens ---


@settings(deadline=None, max_examples=60, database=None)
@given(
    st.lists(st.integers(1, 70), max_size=6),
    st.lists(st.integers(0, 100), min_size=1, max_size=6),
    st.sampled_from([np.uint16, np.uint32]),
    st.data(),
)
def test_any_range_reads_as_it_was_written(lengths, pieces, dtype, data):
    total = sum(lengths)
    rng = np.random.default_rng(total)
    tokens = rng.integers(2, np.iinfo(dtype).max, total).astype(np.int64)
    starts = np.cumsum([0, *lengths])[:-1]
    tokens[starts] = 1
    documents = np.repeat(np.arange(len(lengths)), lengths)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(token_files, "RECORD", 16)
        patch.setattr(token_files, "FILE", 48)
        writer = TokenWriter(Path(folder) / "train", np.dtype(dtype), document=1)
        for piece in np.split(tokens, np.cumsum(pieces)):
            writer.write(piece)
        writer.close()
        assert len(writer.paths) == max(-(-total // 48), 1)
        reader = TokenReader(writer.paths, np.dtype(dtype), document=1)
        for _ in range(5):
            start, stop = sorted(data.draw(st.tuples(*[st.integers(0, total)] * 2)))
            found = reader.read(start, stop) if start < total else ((), ())
            np.testing.assert_array_equal(found[0], tokens[start:stop].astype(np.int32))
            np.testing.assert_array_equal(found[1], documents[start:stop])


def test_tokens_of_a_corpus_are_those_of_its_text(cache, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT[:3000])
    (tmp_path / "b.txt").write_text(TEXT[3000:])
    cfg = text_config(tmp_path / "*.txt", data__validation_fraction=0.2, data__test_fraction=0.1)
    corpus, said = prepared(cfg)
    assert len(said) == 1
    assert said[0].startswith(f"prepared {len(TEXT) + 4:,} tokens from 0.0 MB in ")
    test_start = len(TEXT) - round(0.1 * len(TEXT))
    cut = test_start - round(0.2 * len(TEXT))
    expected = {"train": [TEXT[:cut]], "validation": [TEXT[cut:3000], TEXT[3000:test_start]]}
    expected["test"] = [TEXT[test_start:]]
    if cut > 3000:
        expected = {"train": [TEXT[:3000], TEXT[3000:cut]], "validation": [TEXT[cut:test_start]]}
        expected["test"] = [TEXT[test_start:]]
    for name, texts in expected.items():
        split = corpus.splits[name]
        tokens, documents = split.tokens.read(0, split.counts.tokens)
        starts = np.flatnonzero(tokens == corpus.tokenizer.document)
        assert starts.tolist() == np.cumsum([0] + [len(t) + 1 for t in texts])[:-1].tolist()
        assert [corpus.tokenizer.decode(x) for x in np.split(tokens, starts)[1:]] == texts
        np.testing.assert_array_equal(documents, np.cumsum(tokens == 1) - 1)
        num_bytes = sum(len(text.encode()) for text in texts)
        assert split.counts[:3] == (len(tokens), len(texts), num_bytes)
    known = set(corpus.tokenizer.characters)
    assert known == set("".join(expected["train"]))  # the training split alone


def test_unknown_characters_are_counted(cache, tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 500 + "!?")
    corpus, _ = prepared(text_config(tmp_path / "a.txt"))
    assert corpus.tokenizer.characters == tuple("abcd")
    assert [corpus.splits[name].counts.unknown for name in SPLITS] == [0, 0, 2]


def test_words_are_counted_with_or_without_line_ends(cache, tmp_path):
    (tmp_path / "a.txt").write_text("abcd ef\n" * 500)
    (tmp_path / "held.txt").write_text(" = A title = \n \n The first , and\tlast line .\n")
    held_out = {"data__validation_path": str(tmp_path / "held.txt")}
    for count_line_ends, words in ((False, 4 + 7), (True, 4 + 7 + 3)):
        values = {**held_out, "data__count_line_ends": count_line_ends}
        dataset = load_dataset(text_config(tmp_path / "a.txt", **values))
        assert dataset.validation.num_words == words


# --- the cache ---


def test_a_corpus_is_tokenized_once(cache, text_file, tmp_path, monkeypatch):
    first, _ = prepared(text_config(text_file))
    before = content(first.folder)
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    again, said = prepared(text_config(packed))  # the same text in another file
    assert (again.folder, said) == (first.folder, [])
    assert content(first.folder) == before

    monkeypatch.setattr("mmrec_jax.data.sources.text_files.read_text", None)  # it is not even read
    again, said = prepared(text_config(text_file))
    assert (again.folder, said) == (first.folder, [])


def test_another_text_split_tokenizer_or_vocabulary_is_another_entry(cache, text_file):
    folders = [prepared(text_config(text_file))[0].folder]
    for change in (
        {"data__validation_fraction": 0.1},
        {"data__tokenizer": "byte", "model__vocab_size": 300},
        {"model__vocab_size": 32},
        {"data__tokenizer": "bpe", "model__vocab_size": 300},
        {"data__tokenizer": "bpe", "model__vocab_size": 310},
    ):
        folders.append(prepared(text_config(text_file, **change))[0].folder)
    text_file.write_text(TEXT[:-1] + "!")  # the same length
    folders.append(prepared(text_config(text_file))[0].folder)
    assert len(set(folders)) == 7


def test_where_documents_begin_is_part_of_the_content(cache, tmp_path):
    for name, parts in (("one", [TEXT]), ("two", [TEXT[:999], TEXT[999:]])):
        (tmp_path / name).mkdir()
        for i, part in enumerate(parts):
            (tmp_path / name / f"{i}.txt").write_text(part)
    one, two = (prepared(text_config(tmp_path / name))[0] for name in ("one", "two"))
    assert one.folder != two.folder
    assert [x.splits["train"].counts.documents for x in (one, two)] == [1, 2]


def truncate(folder):
    path = folder / "train-00000.array_record"
    path.write_bytes(path.read_bytes()[:-10_000])


def alter(folder):
    path = folder / "train-00000.array_record"
    times, data = path.stat(), bytearray(path.read_bytes())
    data[np.flatnonzero(data)[-100]] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if nothing had happened


def remove(folder):
    (folder / "test-00000.array_record").unlink()


def change_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("a", "A", 3))


def cut_index(folder):
    (folder / "index.json").write_text((folder / "index.json").read_text()[:100])


@pytest.mark.parametrize("damage", [truncate, alter, remove, change_tokenizer, cut_index])
def test_a_damaged_cache_is_detected_and_rebuilt(cache, text_file, damage):
    cfg = text_config(text_file)
    first, _ = prepared(cfg)
    whole = {k: v for k, v in content(first.folder).items() if k != "index.json"}
    damage(first.folder)
    again, said = prepared(cfg)
    assert len(said) == 2
    assert said[0].startswith("the cache is damaged: ")
    assert again.folder == first.folder
    assert {k: v for k, v in content(again.folder).items() if k != "index.json"} == whole
    assert prepared(cfg)[1] == []


def test_large_files_are_compared_with_their_checksums_only_if_they_changed(
    cache, text_file, monkeypatch
):
    monkeypatch.setattr(token_cache, "ALWAYS_CHECKED", 0)
    first, _ = prepared(text_config(text_file))
    checked, of_file = [], checksums.of_file

    def note(path):
        checked.append(path.name)
        return of_file(path)

    monkeypatch.setattr(checksums, "of_file", note)
    assert prepared(text_config(text_file))[1] == []
    assert checked == []
    os.utime(first.folder / "test-00000.array_record")
    assert prepared(text_config(text_file))[1] == []
    assert checked == ["test-00000.array_record"]


def test_held_out_splits_are_copied_completely(cache, text_file, tmp_path):
    corpus, _ = prepared(text_config(text_file))
    copy_splits(corpus, ("validation", "test"), tmp_path / "data")
    shutil.rmtree(cache)
    copy = open_prepared(tmp_path / "data", check=True)
    for name in ("validation", "test"):
        count = copy.splits[name].counts.tokens
        text = copy.tokenizer.decode(copy.splits[name].tokens.read(0, count)[0])
        assert text in TEXT
        assert len(text) == round(0.05 * len(TEXT)) == count - 1


def test_the_splits_of_an_older_run_can_still_be_read(cache, text_file, tmp_path):
    corpus, _ = prepared(text_config(text_file))
    copy_splits(corpus, ("validation",), tmp_path / "data")
    index = checksums.read_sealed(tmp_path / "data/index.json")
    split = index["splits"]["validation"]
    del split["part_tokens"], split["counts"]["num_words"], split["counts"]["num_lines"]
    (tmp_path / "data/index.json").write_text(json.dumps(index))
    old = open_prepared(tmp_path / "data", check=True).splits["validation"]
    assert old.counts.tokens == corpus.splits["validation"].counts.tokens
    assert (old.counts.num_words, old.part_tokens) == (0, (old.counts.tokens,))
