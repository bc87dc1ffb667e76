"""Each source of text trains a model."""

import gzip
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mmrec_jax.data.sources.sample import sample_texts
from mmrec_jax.data.tokenizers import SubwordTokenizer
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.training.loop import train
from small_runs import config

TEXT = sample_texts(3, 30_000)[0]


def files(folder):
    """Writes a text, JSON lines and a tokenizer."""
    (folder / "plays.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    lines = "".join(json.dumps({"body": line}) + "\n" for line in TEXT.splitlines())
    (folder / "lines.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    table = pa.table({"body": TEXT.splitlines(keepends=True)})
    pq.write_table(table, folder / "rows.parquet")
    with tarfile.open(folder / "plays.tar.xz", "w:xz") as archive:
        archive.add(folder / "plays.txt.gz", "plays/1.txt.gz")
    tokenizer = SubwordTokenizer.train(TEXT.splitlines(keepends=True), 280)
    tokens = json.loads(tokenizer.to_json())["tokenizer"]
    (folder / "tokenizer.json").write_text(json.dumps(tokens))


@pytest.mark.parametrize(
    ("source", "tokenizer", "values"),
    [
        pytest.param("sample", "char", {}, marks=pytest.mark.slow),
        pytest.param("text", "byte", {"path": "plays.txt.gz"}, marks=pytest.mark.slow),
        ("jsonl", "bpe", {"path": "lines.jsonl.zst", "field": "body"}),
        pytest.param("python_docs", "bpe", {"test_fraction": 0.0}, marks=pytest.mark.slow),
        pytest.param("parquet", "char", {"path": ".", "field": "body"}, marks=pytest.mark.slow),
        pytest.param("text", "byte", {"path": "plays.tar.xz"}, marks=pytest.mark.slow),
        pytest.param(
            "text",
            "byte",
            {"mixture": "0.3 FOLDER/plays.tar.xz, 0.7 FOLDER/plays.txt.gz"},
            marks=pytest.mark.slow,
        ),
        ("text", "tokenizer.json", {"path": ".", "exclude": "lines.*,rows.*,plays.tar.xz"}),
    ],
)
def test_twenty_steps(tmp_path, source, tokenizer, values):
    files(tmp_path)
    if "mixture" in values:
        values = {"mixture": values["mixture"].replace("FOLDER", str(tmp_path))}
    if "path" in values:
        values = {**values, "path": str(tmp_path / values["path"])}
    if tokenizer.endswith(".json"):
        tokenizer = str(tmp_path / tokenizer)
    knobs = {f"data__{name}": value for name, value in values.items()}
    cfg = config(
        data__source=source,
        data__tokenizer=tokenizer,
        model__vocab_size=300,
        train__num_steps=20,
        train__learning_rate=1e-2,
        **knobs,
    )
    train(cfg, tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run", "train")]
    assert len(losses) == 20
    assert losses[-1] < 0.95 * losses[0]
    (epoch,) = read_metrics(tmp_path / "run", "epoch")
    assert 0 <= epoch["data wait %"] < 100
