"""One changed bit in any file that is read back is noticed, and the message names the file."""

import json
import shutil

import jax
import numpy as np
import pytest

from mmrec_jax import checksums
from mmrec_jax.data.token_cache import open_prepared
from mmrec_jax.errors import UserError
from mmrec_jax.inference.language_model import load
from mmrec_jax.report.run_log import read_log
from mmrec_jax.runs.check import check_workdir
from mmrec_jax.runs.checkpoints import Checkpoints
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.runs.workdir import open_run
from mmrec_jax.training.loop import train
from small_runs import config, final_params


@pytest.fixture
def workdir(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def flip(path, place=0.5):
    """Changes one bit, at a relative place of the file."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.unlink()  # it may be a hard link
    path.write_bytes(data)


def read_all(workdir):
    """Everything that evaluation and generation read."""
    run = open_run(workdir)
    step = run.checkpoints.resolve("best")
    run.checkpoints.progress(step)
    run.split("validation")
    return jax.tree.map(np.asarray, run.params(step))


@pytest.mark.parametrize("name", ["config.json", "data.json", "tokenizer.json", "data/index.json"])
def test_a_bit_of_the_small_files_counts(workdir, name):
    path = workdir / name
    whole, values = path.read_bytes(), checksums.unsealed(path.read_text())
    for place in np.linspace(0, 1, 40):
        path.write_bytes(whole)
        flip(path, place)
        try:
            read_all(workdir)
        except UserError as error:
            assert path.name in str(error)  # noqa: PT017
        else:  # of white space, or of the word "checksum"
            assert values.items() <= checksums.unsealed(path.read_text()).items()


def test_a_bit_of_any_file_of_a_checkpoint_counts(workdir):
    step = open_run(workdir).checkpoints.resolve("best")
    folder = workdir / "checkpoints" / str(step)
    whole = shutil.copytree(folder, workdir.parent / "whole")
    params = read_all(workdir)
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(names) > 10
    for name in names:
        flip(folder / name)
        is_read = name.parts[0] in ("params", "progress", "metrics", "checksums.json")
        if is_read and name.name != "commit_success.txt":
            with pytest.raises(UserError, match=f"{step}/{name}.* (does not match|cannot be read)"):
                read_all(workdir)
        else:  # not needed to evaluate, or not sealed: no harm
            jax.tree.map(np.testing.assert_array_equal, read_all(workdir), params)
        shutil.copy(whole / name, folder / name)


def test_damaged_tokens_are_named(workdir):
    flip(workdir / "data/validation-00000.array_record")
    with pytest.raises(UserError, match=r"validation-00000.array_record does not match its check"):
        read_all(workdir)
    assert "data.json" not in {path.name for path in (workdir / "data").iterdir()}
    index = checksums.read_sealed(workdir / "data/index.json")
    index["splits"]["validation"]["files"][0]["name"] = "../../validation-00000.array_record"
    (workdir / "data/index.json").write_text(json.dumps(index))
    with pytest.raises(checksums.Damaged, match="is not the name of a token file"):
        open_prepared(workdir / "data")


ITEMS = ["training"] + [
    pytest.param(item, marks=pytest.mark.slow) for item in ("params", "progress", "metrics")
]


@pytest.mark.parametrize("item", ITEMS)
def test_a_resumed_run_sets_a_damaged_checkpoint_aside(workdir, tmp_path, capsys, item):
    """It ends with the same parameters, as if nothing had happened."""
    ends = tmp_path / "ends"
    shutil.copytree(workdir, ends)
    longer = config(train__num_epochs=1)
    *_, before, last = Checkpoints(ends / "checkpoints", read_only=True).steps()
    sealed = checksums.read_sealed(ends / f"checkpoints/{last}/checksums.json")
    files = [ends / f"checkpoints/{last}" / name for name in sealed if name.startswith(item)]
    flip(max(files, key=lambda path: path.stat().st_size))
    assert train(longer, ends)
    assert f"checkpoint {last} cannot be read" in capsys.readouterr().out
    assert [x.name for x in (ends / "unreadable_checkpoints").iterdir()] == [f"{last}-0"]
    assert read_metrics(ends, "event")[-2]["step"] == before  # resumed, then finished
    for one, other in zip(final_params(ends), final_params(workdir), strict=True):
        np.testing.assert_array_equal(one, other)


def test_damaged_lines_of_the_log_are_left_out_and_counted(workdir, capsys):
    path = workdir / "metrics.jsonl"
    before = len(read_metrics(workdir, "train"))
    lines = path.read_text().splitlines(keepends=True)
    place = next(index for index, line in enumerate(lines) if '"train"' in line)
    lines[place] = lines[place].replace('"loss": ', '"loss": 1', 1)
    path.write_text("".join(lines) + '{"kind": "tra')
    assert len(read_metrics(workdir, "train")) == before - 1
    assert len(read_log(workdir).train["loss"]) == before - 1
    error = capsys.readouterr().err.splitlines()
    assert error == [f"{path}: line {place + 1} is damaged and left out"] * 2


def test_the_check_names_what_is_damaged(workdir, tmp_path):
    step = open_run(workdir).checkpoints.resolve("best")
    files = {
        "config.json": "config.json",
        "tokenizer.json and data.json": "data.json",
        "data": "data/test-00000.array_record",
        "metrics.jsonl": "metrics.jsonl",
        f"checkpoint {step}": f"checkpoints/{step}/training/manifest.ocdbt",
    }
    assert not any(verdict.problem for verdict in check_workdir(workdir))
    for what, name in files.items():
        whole = (workdir / name).read_bytes()
        flip(workdir / name)
        assert [verdict.what for verdict in check_workdir(workdir) if verdict.problem] == [what]
        (workdir / name).write_bytes(whole)
    (workdir / f"checkpoints/{step}/checksums.json").unlink()
    remarks = {verdict.what: verdict.remark for verdict in check_workdir(workdir)}
    assert remarks[f"checkpoint {step}"] == "has no checksums: older code wrote it"


def test_every_bit_of_a_session_counts(workdir, tmp_path):
    lm = load(workdir)
    session = lm.session()
    session.read("the")
    path = tmp_path / "session"
    session.save(path)
    whole, wanted = path.read_bytes(), session.generate("", max_tokens=5, temperature=0)
    noticed = 0
    for place in np.linspace(0, 1, 60):
        path.write_bytes(whole)
        flip(path, place)
        try:
            found = lm.session(path).generate("", max_tokens=5, temperature=0)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
            noticed += 1
        else:  # a bit of no consequence, such as of a date
            assert found == wanted
    assert noticed > 40
