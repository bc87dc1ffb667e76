"""The configs of published corpora read the splits as they are published."""

import sysconfig
from pathlib import Path

import pytest

from configs import code, enwik8, pg19, wikitext2, wikitext103
from mmrec_jax.config import from_mapping
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.data.sources.sample import sample_texts

TEXTS = dict(zip(("train", "validation", "test"), sample_texts(0, 60_000), strict=True))
LAYOUTS = {
    enwik8: ["enwik8_train.txt", "enwik8_validation.txt", "enwik8_test.txt"],
    pg19: [f"pg19/{split}/1.txt" for split in TEXTS],
    wikitext2: [f"wikitext-2-raw/wiki.{split}.raw" for split in ("train", "valid", "test")],
    wikitext103: [f"wikitext-103-raw/wiki.{split}.raw" for split in ("train", "valid", "test")],
}


@pytest.mark.parametrize("module", LAYOUTS, ids=lambda module: module.__name__)
def test_each_split_is_its_own_files(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in zip(LAYOUTS[module], TEXTS.values(), strict=True):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    config = module.get_config()
    config.train.batch_size = 2
    if config.data.tokenizer == "bpe":
        config.model.vocab_size = 300
    dataset = load_dataset(from_mapping(config))
    for split, text in TEXTS.items():
        found = getattr(dataset, split)
        assert dataset.tokenizer.decode(found.tokens.read(0, found.num_tokens)[0]) == text
        ends = text.count("\n") if module in (wikitext2, wikitext103) else 0
        assert found.num_words == len(text.split()) + ends


def test_pg19_can_come_from_tfds():
    assert from_mapping(pg19.get_config("tfds")).data.field == "book_text"


@pytest.mark.slow
def test_the_standard_library_has_long_documents_that_everyone_has():
    config = from_mapping(code.get_config()).data
    corpus = open_corpus(config)
    root = Path(sysconfig.get_paths()["stdlib"])
    expected = {
        path
        for path in root.rglob("*.py")
        if path.stat().st_size >= 20_000 and "site-packages" not in path.parts
    }
    assert set(corpus.files) == expected
    sizes = sorted(path.stat().st_size for path in expected)
    assert len(sizes) > 100
    assert sizes[-1] > 300_000
