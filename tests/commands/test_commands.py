"""User mistakes: one line on standard error, a failing exit code, and nothing changed."""

from pathlib import Path

import pytest

from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.data.token_cache import open_prepared
from mmrec_jax.errors import UserError, printable
from mmrec_jax.runs import workdir as workdirs
from mmrec_jax.training.loop import train
from small_runs import ROOT, config, one_error_line, run, train_flags


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_unknown_config_key_names_the_nearest(tmp_path):
    flags = [*train_flags(tmp_path / "run"), "--config.train.learning_rte=1e-3"]
    line = one_error_line(run("train.py", *flags))
    assert "learning_rte" in line
    assert "did you mean 'learning_rate'?" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["eval.py"], "matplotlib", "report"),
        (["train.py", "--config=configs/shakespeare.py"], "tensorflow_datasets", "tfds"),
    ],
)
def test_a_part_that_is_not_installed(tmp_path, command, package, extra):
    script = tmp_path / "without.py"
    script.write_text(
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = run(str(script), *command, f"--workdir={tmp_path / 'run'}")
    assert one_error_line(result) == (
        f"error: {package} is not installed; in the repository, pip install '.[{extra}]'"
    )


@pytest.mark.parametrize("during_import", [True, False])
def test_ctrl_c_takes_one_line(tmp_path, during_import):
    """Also where a package makes something else of it, as TensorStore does."""
    hit = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    swallow = f"try:\n    {hit}\nexcept BaseException:\n    raise ImportError('failed') from None\n"
    (tmp_path / "package.py").write_text(swallow)
    script = tmp_path / "command.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
        "from mmrec_jax.commands import cli\n"
        f"def main(): {'import package' if during_import else hit}\n"
        "cli.run(main, cached=False)\n"
    )
    result = run(str(script))
    assert result.returncode == 130
    assert result.stderr == "error: interrupted\n"


# --- the same within the test process ---


def refusal(workdir: Path, **overrides) -> str:
    with pytest.raises(UserError) as error:
        train(config(**overrides), workdir)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_corpus_shorter_than_a_batch(tmp_path):
    message = refusal(tmp_path / "run", data__sample_chars=30, train__batch_size=8)
    assert "one batch of 8 x 32 needs 257" in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_utf_8(tmp_path):
    text = tmp_path / "latin.txt"
    text.write_bytes("a line\nçünkü".encode("latin-1"))
    message = refusal(tmp_path / "run", data__source="text", data__path=str(text))
    assert f"{text} is not UTF-8 text: byte 7 (line 2) is 0xe7" in message
    assert list(tmp_path.iterdir()) == [text]


def test_a_warm_up_longer_than_the_training_leaves_no_workdir_behind(tmp_path):
    message = refusal(tmp_path / "run", train__warmup_steps=1000)
    assert "train.warmup_steps is 1000, but training has only 62 steps" in message
    assert list(tmp_path.iterdir()) == []  # else the corrected command finds a different config


def test_a_folder_that_is_not_a_workdir_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "is not a workdir" in refusal(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_a_checkpoint_a_workdir_takes_another_config_and_corpus(tmp_path):
    bpe = config(data__tokenizer="bpe", model__vocab_size=300)
    for wanted in (config(), bpe):
        workdirs.check_config(tmp_path, wanted)
        workdirs.prepare(tmp_path, wanted, load_dataset(wanted))
        assert workdirs.read_config(tmp_path) == wanted
        copied = open_prepared(tmp_path / "data", check=True)
        assert copied.tokenizer.vocab_size <= wanted.model.vocab_size
    assert copied.tokenizer.vocab_size > config().model.vocab_size


def test_a_workdir_that_was_left_incomplete_is_rebuilt(tmp_path):
    for name in ("data", "data.partial"):
        (tmp_path / name).mkdir()
    workdirs.check_config(tmp_path, config())
    for name in ("data/index.json", "tokenizer.json", "config.json.12.tmp"):
        (tmp_path / name).write_text("cut o")
    workdirs.prepare(tmp_path, config(), load_dataset(config()))
    before = contents(tmp_path)
    assert not (tmp_path / "config.json.12.tmp").exists()
    workdirs.prepare(tmp_path, config(), load_dataset(config()))
    assert contents(tmp_path) == before


def test_what_is_shown_cannot_change_the_terminal():
    text = "red \x1b[31m, back \r\x08, title \x9d0;x\x07, reversed \u202e, and plain ğ\n\t."
    shown = "red \\x1b[31m, back \\r\\x08, title \\x9d0;x\\x07, reversed \\u202e, and plain ğ\n\t."
    assert printable(text, keep="\n\t") == shown
