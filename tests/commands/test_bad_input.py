"""Bad input of many kinds: each ends with one line that says what is wrong, and changes nothing.

That is, within the time that the imports take: the commands are forked from a process that has
done these already.
"""

import contextlib
import math
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from configs import tiny
from forked_commands import ForkedCommands
from mmrec_jax import knobs
from mmrec_jax.config import Config, from_mapping
from mmrec_jax.data.dataset import load_dataset
from mmrec_jax.errors import UserError
from small_runs import config, train_flags


def contents(*folders: Path) -> dict[str, bytes | None]:
    """Every file by name, with its data; None for a folder."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


class Places(NamedTuple):
    """Where a case happens, and how."""

    folder: Path  # for the files of the case
    workdir: Path  # of a finished run, which no case may change
    cache: Path
    commands: ForkedCommands


@pytest.fixture(scope="module")
def shared(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_input")
    workdir, cache = shutil.copytree(trained_run, folder / "run"), folder / "cache"
    cache.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_CACHE_DIR", str(cache))
        load_dataset(config())  # so that the cache has it
    commands = ForkedCommands(folder)
    yield Places(folder, workdir, cache, commands)
    commands.close()


@pytest.fixture
def places(shared, tmp_path):
    return shared._replace(folder=tmp_path)


def refused(places: Places, script: str, *flags: str) -> str:
    """The line that a command prints, after which everything is as it was."""
    before = contents(places.folder, places.workdir, places.cache)
    environment = {"MMREC_CACHE_DIR": str(places.cache), "MMREC_COMPILE_CACHE": "0"}
    done = places.commands.run(script, *flags, **environment)
    assert done.code in (1, 2), done
    assert "Traceback" not in done.out + done.error, done.error
    line = done.error.strip().splitlines()[-1]
    errors = [x for x in done.error.splitlines() if x.startswith("error: ")]
    assert errors == [line], done.error
    assert len(line) < 600
    assert contents(places.folder, places.workdir, places.cache) == before
    return line


# --- knobs ---


def bad_values():
    """For each knob: values of the wrong type, out of range, and not finite."""
    for section in knobs.sections(Config):
        for field in section.__dataclass_fields__.values():
            if "meaning" not in field.metadata:
                continue
            key, check = f"{section.PREFIX}{field.name}", field.metadata["check"]
            wrong = {
                int: ["many", 2**70],
                float: ["many", math.nan, math.inf, -math.inf],
                bool: ["perhaps"],
                str: [],
            }[field.type]
            if check is not None and field.type is str:
                wrong.append("unheard-of")
            elif check is not None:
                candidates = (field.type(x) for x in (-1, -0.5, 0, 1.5, 1e18))
                wrong.append(next(x for x in candidates if not check.holds(x)))
            yield from ((key, value) for value in wrong)


def test_no_knob_takes_a_bad_value():
    values = [*bad_values()]
    assert len(values) > 150
    for key, value in values:
        mapping = tiny.get_config().to_dict()
        *sections, name = key.split(".")
        (mapping[sections[0]] if sections else mapping)[name] = value
        with pytest.raises(UserError, match=re.escape(key)):
            from_mapping(mapping)


BY_KIND = {(type(value), str(value)): (key, value) for key, value in bad_values()}


@pytest.mark.parametrize(("key", "value"), BY_KIND.values())
def test_a_command_takes_no_bad_value(places, key, value):
    flags = train_flags(places.folder / "run")
    line = refused(places, "train.py", *flags, f"--config.{key}={value}")
    assert key.split(".")[-1] in line


# --- knobs that contradict each other ---


RECALL = "data.source=recall data.tokenizer=word model.vocab_size=256"
CONTRADICTIONS = {
    "train.seq_len=60": "train.seq_len 60 is not a multiple of model.chunk_len",
    "model.dim=17": "model.dim",
    "model.num_heads=3": "model.dim 16 is not divisible by model.num_heads 3",
    "train.batch_size=3 train.accumulate_steps=2": "train.batch_size 3 is not divisible",
    "train.num_steps=5 train.num_tokens=5": "give one of them",
    "mesh.data=-1 mesh.fsdp=-1": "mesh.data and mesh.fsdp are both -1",
    "mesh.fsdp=7": "mesh",
    "train.num_steps=5 train.warmup_steps=9": "train.warmup_steps is 9",
    "train.batch_size=1000000": "one batch of",
    "train.seq_len=1048576": "one batch of",
    "data.validation_fraction=0.9 data.test_fraction=0.5": "fraction",
    "model.dim=4000000": "GB in training",
    "model.num_layers=100000000": "GB in training",
    "model.vocab_size=3": "model.vocab_size",
    "data.source=text": "data.path",
    "data.source=text data.path=/nowhere/*.txt": "data.path '/nowhere/*.txt' matches no file",
    "data.tokenizer=/nowhere/tokenizer.json": "/nowhere/tokenizer.json",
    "data.tokenizer=bpe model.vocab_size=99": "needs at least 258",
    "init_from=/nowhere": "there is no workdir /nowhere",
    f"{RECALL} train.seq_len=24": "train.seq_len is 24",
    f"{RECALL} data.recall_pairs=999": "data.recall_pairs is 999",
}


@pytest.mark.parametrize("values", CONTRADICTIONS)
def test_knobs_that_contradict_each_other(places, values):
    flags = train_flags(places.folder / "run")
    line = refused(places, "train.py", *flags, *(f"--config.{x}" for x in values.split()))
    assert CONTRADICTIONS[values] in line


# --- files ---


def empty(path):
    path.touch()


def truncated(path):
    path.write_bytes(b'{"model": {"di')


def binary(path):
    path.write_bytes(bytes(range(256)) * 8)


def zeros(path):
    path.write_bytes(bytes(4096))


def folder(path):
    path.mkdir()


def dangling(path):
    path.symlink_to(path.parent / "gone")


def loop(path):
    path.symlink_to(path)


def pipe(path):
    os.mkfifo(path)


def nothing(path):
    """The file is missing."""


def surrogates(path):
    path.write_bytes("a \ud800 b".encode("utf-8", "surrogatepass"))


KINDS = (nothing, empty, truncated, binary, zeros, folder, dangling, loop, pipe, surrogates)
TEXTS = tuple(kind for kind in KINDS if kind is not truncated)  # which is a text


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_file_that_is_none(places, kind):
    path = places.folder / "config.py"
    kind(path)
    assert str(path) in refused(places, "train.py", f"--config={path}")


@pytest.mark.parametrize("kind", TEXTS)
def test_a_corpus_that_is_none(places, kind):
    path = places.folder / "text.txt"
    kind(path)
    text = {"data__source": "text", "data__path": path}
    line = refused(places, "train.py", *train_flags(places.folder / "run", **text))
    assert str(path) in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_structured_data_that_is_none(places, source, kind):
    path = places.folder / f"text.{source}"
    kind(path)
    values = {"data__source": source, "data__path": path}
    line = refused(places, "train.py", *train_flags(places.folder / "run", **values))
    assert str(path) in line


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_is_none(places, kind):
    path = places.folder / "tokenizer.json"
    kind(path)
    line = refused(places, "train.py", *train_flags(places.folder / "run", data__tokenizer=path))
    assert str(path) in line


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "3",
        '{"kind": "char"}',
        '{"kind": "word", "words": [1]}',
        '{"kind": "subword", "tokenizer": {}}',
        "[" * 100_000,
    ],
)
def test_a_tokenizer_of_another_shape(places, text):
    path = places.folder / "tokenizer.json"
    path.write_text(text)
    line = refused(places, "train.py", *train_flags(places.folder / "run", data__tokenizer=path))
    assert str(path) in line


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_to_evaluate_that_is_none(places, kind):
    path = places.folder / "text.txt"
    kind(path)
    line = refused(places, "eval.py", f"--workdir={places.workdir}", f"--text={path}")
    assert str(path) in line


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (nothing, dangling, loop)])
def test_a_session_that_is_none(places, kind):
    path = places.folder / "session"
    kind(path)
    line = refused(places, "generate.py", f"--workdir={places.workdir}", f"--session={path}")
    assert str(path) in line


# --- workdirs ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", ["eval.py", "generate.py", "report.py"])
def test_a_workdir_that_is_none(places, script, kind):
    path = places.folder / "run"
    kind(path)
    assert str(path) in refused(places, script, f"--workdir={path}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (nothing, folder)])
def test_training_in_what_is_no_folder(places, kind):
    path = places.folder / "run"
    kind(path)
    assert str(path) in refused(places, "train.py", *train_flags(path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "data.json"])
@pytest.mark.parametrize("script", ["eval.py", "generate.py"])
def test_a_workdir_with_a_file_that_is_none(places, script, name, kind):
    path = Path(shutil.copytree(places.workdir, places.folder / "run"), name)
    path.unlink()
    kind(path)
    is_missing = name == "config.json" and not path.exists()
    said = path.parent if is_missing else path
    assert str(said) in refused(places, script, f"--workdir={path.parent}")


def test_a_workdir_without_checkpoints(places):
    path = shutil.copytree(places.workdir, places.folder / "run")
    shutil.rmtree(path / "checkpoints")
    assert f"{path} has no checkpoints yet" in refused(places, "eval.py", f"--workdir={path}")


def test_the_workdir_of_another_config(places):
    line = refused(places, "train.py", *train_flags(places.workdir, model__long_term=8))
    assert "model.long_term: 4 -> 8" in line


FOLDERS = ("a space", "a'quote", 'a"quote', "a\nline", "ağaç", "-dash", "$HOME", "*", "a;b", "%s")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_an_unusual_name_is_named_in_one_line(places, name):
    path = places.folder / name
    line = refused(places, "eval.py", f"--workdir={path}")
    assert name.replace("\n", "\\n") in line


NO_DISK = Path("/proc")  # where nobody can make a file or a folder


@pytest.mark.skipif(not NO_DISK.exists(), reason="this system has no such folder")
@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("train.py", "workdir"),
        ("eval.py --workdir=RUN --workdir=OTHER", "output"),
        ("report.py --workdir=RUN --workdir=OTHER", "output"),
        ("generate.py --workdir=RUN", "session"),
    ],
)
def test_a_place_that_cannot_be_written_to(places, command, place):
    other = shutil.copytree(places.workdir, places.folder / "other")
    script, *flags = (
        command.replace("RUN", str(places.workdir)).replace("OTHER", str(other)).split()
    )
    flags += train_flags(NO_DISK / "x") if script == "train.py" else [f"--{place}={NO_DISK / 'x'}"]
    assert str(NO_DISK) in refused(places, script, *flags)


@pytest.mark.skipif(not NO_DISK.exists(), reason="this system has no such folder")
@pytest.mark.parametrize("script", ["train.py", "mmrec_jax.commands.prepare"])
def test_a_cache_that_cannot_be_written(places, script):
    flags = train_flags(places.folder / "run")
    flags = flags if script == "train.py" else [x for x in flags if x.startswith("--config")]
    line = refused(places._replace(cache=NO_DISK / "cache"), script, *flags)
    assert f"the cache {NO_DISK}/cache cannot be written" in line


# --- flags ---


FLAGS = {
    "train.py": "--config is missing",
    "train.py --config": "config",
    "train.py --config=": "config",
    "train.py --conifg=configs/tiny.py": "conifg",
    "train.py configs/tiny.py": "configs/tiny.py",
    "train.py --config=configs/tinny.py": "did you mean 'configs/tiny.py'?",
    "train.py --config=configs/tinny.py --config.train.seed=1": "did you mean 'configs/tiny.py'?",
    "train.py --config=configs/tiny.py --config.model.dmi=3": "did you mean 'dim'?",
    "train.py --config=configs/tiny.py --config.modle.dim=3": "did you mean 'model'?",
    "train.py --config=configs/tiny.py --config.model=3": "model",
    "train.py --config=configs/tiny.py --num_processes=2": "are missing",
    "train.py --config=configs/tiny.py --dry_run --device=abacus": "abacus",
    "train.py --config=configs/tiny.py --dry_run --devices=many": "devices",
    "train.py --config=configs/tiny.py --report=perhaps": "report",
    "train.py --config=configs/recall.py:half": "no variant 'half'; choose one of full, no_long",
    "eval.py": "--workdir is missing",
    "eval.py --workdir=": "is not a workdir",
    "eval.py --workdir=RUN --checkpoint=worst": "there is no checkpoint 'worst'",
    "eval.py --workdir=RUN --checkpoint=99999999": "there is no checkpoint '99999999'",
    "eval.py --workdir=RUN --checkpoint=-1": "there is no checkpoint '-1'",
    "eval.py --workdir=RUN --checkpoint=": "there is no checkpoint ''",
    "eval.py --workdir=RUN --split=train": "split",
    "eval.py --workdir=RUN --suite=recall": "needs a run of configs/recall.py",
    "eval.py --workdir=RUN --suite=memory": "suite",
    "eval.py --workdir=RUN --workdir=RUN": "names the same run twice; name different runs",
    "eval.py --workdir=a --workdir=./a": "names the same run twice",
    "eval.py --workdir=RUN --workdir=/nowhere": "/nowhere",
    "eval.py --workdir=RUN --workdir=/nowhere --text=/nowhere/text": "/nowhere",
    "generate.py": "--workdir is missing",
    "generate.py --workdir=RUN --top_p=0": "top_p",
    "generate.py --workdir=RUN --top_p=nan": "top_p",
    "generate.py --workdir=RUN --top_p=1.1": "top_p",
    "generate.py --workdir=RUN --top_k=-1": "top_k",
    "generate.py --workdir=RUN --top_k=99999999999999999999": "top_k",
    "generate.py --workdir=RUN --temperature=-1": "temperature",
    "generate.py --workdir=RUN --temperature=inf": "temperature",
    "generate.py --workdir=RUN --temperature=nan": "temperature",
    "generate.py --workdir=RUN --seed=-1": "seed",
    "generate.py --workdir=RUN --seed=99999999999999999999": "seed",
    "generate.py --workdir=RUN --tokens=-1": "tokens",
    "generate.py --workdir=RUN --tokens=many": "tokens",
    "generate.py --workdir=RUN --stop=": "--stop is empty",
    "generate.py --workdir=RUN --prompt=a --prompt=b --session=s": "only one --prompt",
    "generate.py --workdir=RUN --session=/nowhere/s": "there is no folder /nowhere",
    "generate.py --workdir=RUN --checkpoint=worst": "there is no checkpoint 'worst'",
    "report.py": "--workdir is missing",
    "report.py --workdir=RUN --workdir=/nowhere": "/nowhere",
    "report.py --workdir=RUN --model=perhaps": "model",
    "mmrec_jax.commands.prepare": "--config is missing",
    "mmrec_jax.commands.prepare --config=configs/recall.py": "has no corpus to prepare",
}


@pytest.mark.parametrize("command", FLAGS)
def test_flags(places, command):
    script, *flags = command.replace("RUN", str(places.workdir)).split(" ")
    assert FLAGS[command] in refused(places, script, *flags)
