"""TensorFlow datasets: prepared and read without TensorFlow."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_corpora import splits_of, whole

from mmrec_jax.config import DataConfig
from mmrec_jax.data import encoding
from mmrec_jax.data.corpus import SPLITS
from mmrec_jax.data.sources import open_corpus
from mmrec_jax.data.sources.sample import sample_texts
from mmrec_jax.errors import UserError
from small_runs import ROOT, one_error_line, run, train_flags

TEXT = sample_texts(1, 20_000)[0]
FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.1}

# Runs a command and fails if TensorFlow was imported, or could have been.
WITHOUT_TENSORFLOW = """
import importlib.util, runpy, sys
assert importlib.util.find_spec("tensorflow") is None
script, sys.argv = sys.argv[1], sys.argv[1:]
try:
    if script.endswith(".py"):
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
finally:
    assert "tensorflow" not in sys.modules
"""


def command(script, *flags):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(script), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def build(folder, path, *flags):
    return command(
        "mmrec_jax.commands.tfds_builder",
        f"--path={path}",
        f"--data_dir={folder / 'tfds'}",
        *(f"--{name}={value}" for name, value in FRACTIONS.items()),
        *flags,
    )


def tfds_config(folder, name, **values):
    return DataConfig(source="tfds", tfds_name=name, tfds_dir=str(folder / "tfds"), **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two datasets made by the project's own builder."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "texts").mkdir()
    for name, text in (("a", TEXT[:9000]), ("b", TEXT[9000:].replace("e", "ğ"))):
        (folder / "texts" / f"{name}.txt").write_text(text)
    lines = [json.dumps({"body": line}) for line in TEXT.splitlines(keepends=True)]
    (folder / "lines.jsonl").write_text("\n".join(lines))
    made = build(folder, folder / "texts", "--name=plays", "--version=1.2.3")
    assert made.returncode == 0, made.stderr
    assert "plays/1.2.3 is in " in made.stdout
    made = build(folder, folder / "lines.jsonl", "--name=lines", "--source=jsonl", "--field=body")
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("name", ["plays", "plays:1.2.3", "lines"])
def test_a_dataset_made_from_a_corpus_is_the_same_corpus(folder, name):
    of_dataset = splits_of(open_corpus(tfds_config(folder, name)))
    own = {"source": "text", "path": str(folder / "texts")}
    if name == "lines":
        own = {"source": "jsonl", "path": str(folder / "lines.jsonl"), "field": "body"}
    assert of_dataset == splits_of(open_corpus(DataConfig(**own, **FRACTIONS)))
    assert len(of_dataset[0]) == 2 or name == "lines"


def test_a_long_document_is_one_document_of_several_examples(folder, monkeypatch):
    from mmrec_jax.commands import tfds_builder

    monkeypatch.setattr(encoding, "BLOCK", 1000)
    data = DataConfig(source="text", path=str(folder / "texts"), **FRACTIONS)
    builder = tfds_builder.make_builder("long_plays", "1.0.0", data, str(folder / "tfds"))
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples > 10
    monkeypatch.undo()
    corpus = open_corpus(tfds_config(folder, "long_plays"))
    assert splits_of(corpus) == splits_of(open_corpus(data))


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("features.json", "tensorflow_datasets.core.features.text_feature", "stranger", "not of"),
        ("dataset_info.json", "{DATASET}-", "../../{DATASET}-", "names a file outside of it"),
        ("dataset_info.json", "name", "nombre", "cannot be read: Message type"),
    ],
)
def test_a_dataset_of_a_stranger_runs_no_code_and_stays_in_its_folder(
    folder, tmp_path, monkeypatch, file, old, new, told
):
    shutil.copytree(folder / "tfds/plays", tmp_path / "tfds/plays")
    path = tmp_path / "tfds/plays/1.2.3" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    (tmp_path / "stranger.py").write_text("open('has_run', 'w')")
    monkeypatch.syspath_prepend(tmp_path)  # as Python does with the current folder
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        open_corpus(tfds_config(tmp_path, "plays"))
    assert not (tmp_path / "has_run").exists()


@pytest.mark.slow
def test_training_reads_a_dataset_without_tensorflow(folder, tmp_path):
    flags = train_flags(
        tmp_path / "run",
        data__source="tfds",
        data__tfds_name="plays",
        data__tfds_dir=folder / "tfds",
        train__num_epochs=1,
    )
    result = command(ROOT / "train.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "finished: all epochs done" in result.stdout


# --- the catalog ---


@pytest.fixture(scope="module")
def bool_q(folder):
    """The files that TFDS would download for bool_q, which has no test split."""
    from tensorflow_datasets.core.download import resource
    from tensorflow_datasets.datasets.bool_q import bool_q_dataset_builder

    downloads = folder / "tfds" / "downloads"
    downloads.mkdir(exist_ok=True)
    passages = {}
    for split in ("train", "dev"):
        url = f"https://storage.googleapis.com/boolq/{split}.jsonl"
        checksum = bool_q_dataset_builder.Builder.url_infos[url].checksum
        path = downloads / resource.get_dl_fname(url, checksum)
        passages[split] = [f"{split} {line}" for line in TEXT.splitlines()]
        rows = (
            {"question": "?", "passage": p, "answer": True, "title": ""} for p in passages[split]
        )
        path.write_text("\n".join(map(json.dumps, rows)))
        info = {"dataset_names": ["bool_q"], "urls": [url], "original_fname": f"{split}.jsonl"}
        path.with_suffix(path.suffix + ".INFO").write_text(json.dumps(info))
    return passages


@pytest.mark.slow
def test_a_downloaded_dataset_of_the_catalog_is_prepared_and_read(folder, bool_q, tmp_path):
    flags = train_flags(
        tmp_path / "run",
        data__source="tfds",
        data__tfds_name="bool_q",
        data__tfds_dir=folder / "tfds",
        data__field="passage",
        train__num_epochs=1,
    )
    result = command(ROOT / "train.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "finished: all epochs done" in result.stdout

    config = tfds_config(folder, "bool_q", field="passage", tfds_split="train[:50%]")
    corpus = open_corpus(config)
    train, validation, test = splits_of(corpus)
    assert len(train) == round(len(bool_q["train"]) / 2)
    assert set(train) < set(bool_q["train"])
    # The first half of the only other split is for validation.
    assert sorted(whole(corpus.parts[1].pieces())) == sorted(bool_q["dev"])
    assert abs(len("".join(validation)) - len("".join(test))) <= 1


def refusal(folder, name, **values):
    with pytest.raises(UserError) as error:
        open_corpus(tfds_config(folder, name, **values))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_exist_is_refused_with_advice(folder, bool_q):
    assert "no tfds dataset 'play' (did you mean 'plays'?)" in refusal(folder, "play")
    message = refusal(folder, "tiny_shakspeare")
    assert "no tfds dataset 'tiny_shakspeare' (did you mean 'tiny_shakespeare'?)" in message
    message = refusal(folder, "tiny_shakespeare")
    assert "is not downloaded and prepared yet; run: tfds build tiny_shakespeare" in message
    message = refusal(folder, "c4/en")
    assert "'c4/en' is not prepared in" in message
    assert "run: tfds build c4/en --file_format=array_record" in message
    message = refusal(folder, "plays", field="passage")
    assert "has no field 'passage'; it has 'document', 'text'" in message
    assert "Unknown split" in refusal(folder, "plays", tfds_split="trian")


def test_an_unknown_dataset_is_reported_in_one_line(folder, tmp_path):
    flags = train_flags(tmp_path / "run", data__source="tfds", data__tfds_name="plaes")
    flags.append(f"--config.data.tfds_dir={folder / 'tfds'}")
    line = one_error_line(run("train.py", *flags))
    assert "did you mean 'plays'?" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name=plays", "--version=1.2.3"], "already exists; choose another --version"),
        (["--name=My-Plays"], "it must be snake_case"),
        (["--name=plays", "--version=new"], "--version: Invalid version 'new'"),
        (["--path=/nowhere/*.txt", "--name=x"], "matches no file"),
        (["--path=", "--name=x"], "data.path is empty"),
        ([], "--name is missing"),
    ],
)
def test_the_builder_refuses_bad_input_in_one_line(folder, flags, message):
    result = build(folder, folder / "texts", *flags)
    assert message in one_error_line(result)


def test_splits_are_in_the_order_of_the_corpus(folder):
    corpus = open_corpus(tfds_config(folder, "lines"))
    assert [part.shares for part in corpus.parts] == [((name, 1.0),) for name in SPLITS]
    lines = [line for part in corpus.parts for line in whole(part.pieces())]
    np.testing.assert_array_equal("".join(lines), TEXT)
