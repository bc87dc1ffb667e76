"""Runs that are killed, stopped or damaged, and then resume."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mmrec_jax import checksums
from mmrec_jax.errors import UserError
from mmrec_jax.learning.evaluate import evaluate, make_eval_step
from mmrec_jax.learning.step import init_train_state
from mmrec_jax.runs.workdir import check_config, open_run
from mmrec_jax.training.beginning import plan_run
from mmrec_jax.training.loop import train
from small_runs import (
    command,
    config,
    environment,
    final_params,
    one_error_line,
    run,
    train_flags,
)

# Memory is carried, so that it is part of what must not be lost.
LOG = {"train__log_every": 1, "train__carry_memory": True, "train__eval_batch_size": 1}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    result = run("train.py", *train_flags(workdir, **LOG))
    assert result.returncode == 0, result.stderr
    return workdir


def start(workdir: Path, **overrides) -> subprocess.Popen:
    return subprocess.Popen(
        command("train.py", *train_flags(workdir, **LOG, **overrides)),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    pytest.fail(f"ended before step {step}: {process.stderr.read()}")


def kill_at_step(workdir: Path, step: int, **overrides) -> None:
    process = start(workdir, **overrides)
    wait_for_step(process, step)
    process.kill()
    process.wait()


def kill_while_saving(workdir: Path) -> None:
    """Kills the run while a half-written checkpoint is in its folder."""
    process = start(workdir)
    checkpoints = workdir / "checkpoints"
    while process.poll() is None:
        half_written = list(checkpoints.glob("*orbax-checkpoint-tmp*"))
        if half_written:
            process.kill()
            process.wait()
            assert any(path.exists() for path in half_written), "saved faster than it was killed"
            return
        time.sleep(0.001)
    pytest.fail(f"never saved: {process.stderr.read()}")


def resumed_from(result: subprocess.CompletedProcess) -> int:
    return int(re.search(r"resuming from step (\d+)", result.stdout)[1])


def losses(workdir: Path) -> list[tuple]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        (line["kind"], line["step"], line["loss"])
        for line in lines
        if line["kind"] in ("train", "evaluation")
    ]


def last_state(opened, planned):
    """The complete last checkpoint: parameters, optimizer state and memory."""
    like = init_train_state(opened.config, planned.optimizer, jax.random.key(1))
    state, progress = opened.checkpoints.restore_newest(like, pytest.fail)
    assert progress["finished"]
    assert int(state.step) == planned.total_steps
    return state


def stop_at_step(workdir: Path, step: int, signal_number: int) -> int:
    """Asks the run to end, and returns the step that it saves."""
    process = start(workdir)
    wait_for_step(process, step)
    process.send_signal(signal_number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal_number
    assert "Traceback" not in errors
    saved = int(output.split("saved step ")[1].split(";")[0])
    assert saved >= step
    return saved


def test_no_bit_depends_on_when_a_run_is_killed_or_stopped(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    kill_at_step(workdir, 7)  # before any checkpoint
    kill_while_saving(workdir)
    kill_at_step(workdir, 25)  # between two checkpoints
    saved = stop_at_step(workdir, 35, signal.SIGTERM)
    result = run("train.py", *train_flags(workdir, **LOG))
    assert result.returncode == 0, result.stderr
    assert resumed_from(result) == saved
    assert losses(workdir) == losses(undisturbed)
    opened = open_run(undisturbed)
    planned = plan_run(opened.config, undisturbed)
    expected = last_state(opened, planned)
    assert all(np.any(layer.h) for layer in expected.memory.layers)
    jax.tree.map(np.testing.assert_array_equal, last_state(open_run(workdir), planned), expected)

    # Validation carries memory from window to window, too.
    eval_step = make_eval_step(opened.config.model)
    carried, fresh = (
        evaluate(eval_step, expected.params, opened.split("validation"), opened.config, carry).loss
        for carry in (True, False)
    )
    kind, _, logged = losses(undisturbed)[-1]
    assert kind == "evaluation"
    assert logged == pytest.approx(carried, rel=1e-5)
    assert abs(carried - fresh) > 1e-4


@pytest.mark.slow
def test_ctrl_c_saves_the_current_step(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    saved = stop_at_step(workdir, 25, signal.SIGINT)
    assert resumed_from(run("train.py", *train_flags(workdir, **LOG))) == saved
    for one, other in zip(final_params(undisturbed), final_params(workdir), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_finished_run_does_nothing(undisturbed):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    result = run("train.py", *train_flags(undisturbed, **LOG))
    assert result.returncode == 0
    assert "has finished at step 62" in result.stdout
    assert "nothing to do" in result.stdout
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_gives_one_error_line_and_loses_nothing(trained_run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        flags = train_flags(disk / "run", train__num_epochs=1)
        line = one_error_line(run("train.py", *flags))
        assert "No space left on device" in line
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert train(config(train__num_epochs=1), disk / "run")
        for one, other in zip(final_params(trained_run), final_params(disk / "run"), strict=True):
            np.testing.assert_array_equal(one, other)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def begin(workdir):
    """Makes a workdir one that has a checkpoint."""
    (workdir / "checkpoints/1").mkdir(parents=True)
    (workdir / "checkpoints/1/_CHECKPOINT_METADATA").touch()


def test_a_run_whose_bank_worked_differently_is_refused(tmp_path):
    """Without a bank, a run from before means what it meant."""
    begin(tmp_path)
    for long_term in (4, 0):
        new = config(model__long_term=long_term)
        old = checksums.unsealed(new.to_json())
        del old["memory_version"]
        (tmp_path / "config.json").write_text(json.dumps(old))
        if not long_term:
            check_config(tmp_path, new)
            continue
        for refuses in (lambda: open_run(tmp_path), lambda: check_config(tmp_path, new)):  # noqa: B023
            with pytest.raises(UserError, match="long-term memory worked differently; train it"):
                refuses()


@pytest.mark.parametrize("text", ['{"model": ', "[]", "{}", '{"model": 3, "train": []}'])
def test_a_damaged_config_is_reported_wherever_it_is_read(tmp_path, text):
    begin(tmp_path)
    (tmp_path / "config.json").write_text(text)
    for read in (open_run, lambda path: check_config(path, config())):
        with pytest.raises(UserError, match=f"{tmp_path}/config.json cannot be read: "):
            read(tmp_path)
