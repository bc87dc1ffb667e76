"""A ladder of small models: undisturbed, or killed between two rungs and within one."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from configs import ladder
from mmrec_jax.errors import UserError
from mmrec_jax.learning.cost import count_flops
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.training.ladder import rung_configs
from small_runs import ROOT, SMALL, command, environment, final_params, one_error_line, run

MINI = {"model.dim": 32, "train.learning_rate": 1e-3}


def flags(workdir: Path) -> list[str]:
    """Two rungs: the small run of the tests, and one twice as wide."""
    knobs = {f"data.{name.removeprefix('data.')}": SMALL[name] for name in SMALL if "data." in name}
    for rung, own in (("tiny", {}), ("mini", MINI)):
        of_rung = {"train.batch_size": 2, "train.log_every": 1, **SMALL, **own}
        knobs |= {f"{rung}.{name}": of_rung[name] for name in of_rung if "data." not in name}
    return [
        f"--config={ROOT / 'configs/ladder.py'}",
        f"--workdir={workdir}",
        "--noreport",
        "--config.rungs=('tiny', 'mini')",
        *(f"--config.{name}={value}" for name, value in knobs.items()),
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, str]:
    """The workdir of an uninterrupted ladder, and what it printed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "ladder"
    result = run("train.py", *flags(workdir))
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def kill_at(line_start: str, workdir: Path) -> None:
    process = subprocess.Popen(
        command("train.py", *flags(workdir)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    in_second_rung = False
    for line in process.stdout:
        in_second_rung = in_second_rung or line.startswith("rung 2")
        if in_second_rung and line.startswith(line_start):
            process.kill()
            process.wait()
            return
    pytest.fail(f"never printed {line_start!r}: {process.stderr.read()}")


@pytest.mark.slow
def test_kills_between_two_rungs_and_within_one_change_no_bit(undisturbed, tmp_path):
    workdir = tmp_path / "ladder"
    kill_at("rung 2 of 2", workdir)
    assert (workdir / "tiny/checkpoints/62").is_dir()
    assert not (workdir / "mini/checkpoints").exists()
    kill_at("step 47/", workdir)
    result = run("train.py", *flags(workdir))
    assert result.returncode == 0, result.stderr
    assert "tiny has finished at step 62" in result.stdout
    assert int(re.search(r"resuming from step (\d+)", result.stdout)[1]) in (31, 40)
    for rung in ("tiny", "mini"):
        one, other = (final_params(folder / rung) for folder in (undisturbed[0], workdir))
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)
    tables = [(folder / "ladder.json").read_text() for folder in (undisturbed[0], workdir)]
    assert tables[0] == tables[1]


def test_the_table_matches_what_the_runs_have_logged(undisturbed):
    workdir, printed = undisturbed
    configs = rung_configs(ladder_mapping(), workdir)
    first, second = json.loads((workdir / "ladder.json").read_text())
    for rung, config in ((first, configs[0]), (second, configs[1])):
        assert rung["parameters"] == sum(x.size for x in final_params(workdir / rung["rung"]))
        assert rung["tokens"] == 62 * 2 * 32
        assert rung["flops"] == rung["tokens"] * count_flops(config).training
        losses = [line["loss"] for line in read_metrics(workdir / rung["rung"], "evaluation")]
        assert rung["end_loss"] == min(losses)
        assert f"{rung['parameters']:,}" in printed
    assert first["start_loss"] is None
    assert second["start_loss"] == pytest.approx(first["end_loss"], abs=1e-5)
    assert second["end_loss"] < second["start_loss"]


def ladder_mapping(**changes):
    mapping = ladder.get_config().to_dict()
    for flag in flags(Path("unused"))[4:]:
        key, value = flag.removeprefix("--config.").split("=")
        *sections, name = key.split(".")
        section = mapping
        for part in sections:
            section = section[part]
        section[name] = type(section[name])(value)
    return {**mapping, "rungs": ("tiny", "mini"), **changes}


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ((), "rungs is empty"),
        (("tiny", "mimi"), r"the ladder has no rung 'mimi' \(did you mean 'mini'\?\)"),
        (("tiny", "tiny"), "the rung 'tiny' is in the ladder twice"),
        (("mini", "tiny"), r"mini cannot grow into tiny: a model cannot shrink: model\.head_dim"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused_at_the_start(rungs, message, tmp_path):
    with pytest.raises(UserError, match=message):
        rung_configs(ladder_mapping(rungs=rungs), tmp_path)


def test_an_error_in_a_rung_names_the_rung(tmp_path):
    mapping = ladder_mapping()
    mapping["mini"]["train"]["seq_len"] = 33
    with pytest.raises(UserError, match=r"rung mini: train\.seq_len 33 is not a multiple"):
        rung_configs(mapping, tmp_path)


def test_an_unknown_knob_of_a_rung_gives_one_error_line(tmp_path):
    wrong = [*flags(tmp_path / "ladder"), "--config.mini.train.learning_rte=1"]
    line = one_error_line(run("train.py", *wrong))
    assert "did you mean 'learning_rate'?" in line
    assert list(tmp_path.iterdir()) == []
