"""Several processes train one model as one process does, and end together."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from types import MappingProxyType

import numpy as np
import pytest

from mmrec_jax.commands.processes import LOST
from mmrec_jax.runs.metrics import read_metrics
from mmrec_jax.training.loop import train
from small_runs import (
    ROOT,
    command,
    config,
    environment,
    final_params,
    one_error_line,
    run,
    train_flags,
    without_waiting,
)

STEPS = 60
KNOBS = {
    "train.batch_size": 4,
    "train.num_steps": STEPS,
    "train.carry_memory": True,
    "train.log_every": 1,
    "mesh.data": -1,
    "mesh.fsdp": 2,
}


def flags(path, **changes):
    return train_flags(path, **{**KNOBS, **changes})


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def config_of_one(**changes):
    """The same run in one process of four devices."""
    values = {**KNOBS, "mesh.data": 2, **changes}
    return config(**{name.replace(".", "__"): value for name, value in values.items()})


@contextlib.contextmanager
def two_processes(
    path, changes=MappingProxyType({}), of_second=MappingProxyType({}), script="train.py"
):
    """Two processes of two devices each, which are killed in the end."""
    meet = [f"--coordinator={free_address()}", "--num_processes=2", "--connect_timeout=60"]
    started = [
        subprocess.Popen(
            command(
                script,
                *flags(path, **{**changes, **more}),
                *meet,
                f"--process_id={index}",
            ),
            env={**environment(), "JAX_NUM_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, more in enumerate(({}, of_second))
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def wait_for_step(process, step):
    """Reads what a process prints until it has done a step."""
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(process.stderr.read())


def finish(processes, seconds=100):
    """The exit codes of processes, and what the first prints on standard error."""
    end = time.monotonic() + seconds
    error = processes[0].communicate(timeout=seconds)[1]
    codes = [process.wait(timeout=end - time.monotonic()) for process in processes]
    return codes, without_waiting(error)


def losses(path, kind="train"):
    return [line["loss"] for line in read_metrics(path, kind)]


def test_two_processes_train_as_one_and_stop_at_the_same_step(tmp_path):
    path, of_one = tmp_path / "two", tmp_path / "one"
    short = {"train.num_steps": 15, "train.eval_every": 3}
    with two_processes(path, short) as processes:
        wait_for_step(processes[0], 4)
        processes[1].send_signal(signal.SIGTERM)
        codes, _ = finish(processes, seconds=30)
    assert codes == [128 + signal.SIGTERM] * 2
    assert 4 <= len(losses(path)) < 15
    for workdir in (path, of_one):
        train(config_of_one(**short), workdir)
    for kind, count in (("train", 15), ("evaluation", 5)):
        assert len(losses(path, kind)) == count
        np.testing.assert_allclose(losses(path, kind), losses(of_one, kind), rtol=1e-5)


@pytest.mark.slow
def test_a_run_continues_with_more_or_fewer_processes(tmp_path):
    saved = {"train.checkpoint_every": 20, "train.keep_checkpoints": 9}
    of_two, of_one = tmp_path / "two", tmp_path / "one"
    with two_processes(of_two, saved) as processes:
        assert finish(processes) == ([0, 0], "")
    for data in (1, 2):
        path = shorten(of_two, tmp_path / f"two_{data}")
        train(config_of_one(**saved, **{"mesh.data": data}), path)
        np.testing.assert_allclose(losses(path), losses(of_two), rtol=1e-5)
    train(config_of_one(**saved), of_one)
    path = shorten(of_one, tmp_path / "one_two")
    with two_processes(path, saved) as processes:
        assert finish(processes) == ([0, 0], "")
    np.testing.assert_allclose(losses(path), losses(of_one), rtol=1e-5)


def shorten(run, path):
    """A copy of a run that has only its checkpoint of step 20."""
    shutil.copytree(run, path)
    for checkpoint in (path / "checkpoints").glob("[0-9]*"):
        if checkpoint.name != "20":
            shutil.rmtree(checkpoint)
    return path


LATE = f"""
import runpy, sys, time
import jax
def late(event, seconds, fun_name="", **_):
    global is_late
    if event == "/jax/core/compile/backend_compile_duration" and fun_name == "jit(step)":
        time.sleep(35 if is_late else 0)
        is_late = False
is_late = "--process_id=1" in sys.argv
jax.monitoring.register_event_duration_secs_listener(late)
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_a_process_is_waited_for_that_takes_longer_to_compile(tmp_path):
    """Its first step, of training or of evaluation, is called `step`.

    A grown model is evaluated first. JAX itself waits for 30 s.
    """
    script = tmp_path / "late.py"
    script.write_text(LATE)
    source, short = tmp_path / "source", {"train.num_steps": 8, "growth.warmup_steps": 2}
    train(config_of_one(**short), source)
    for path, changes in (("new", short), ("grown", {**short, "init_from": source})):
        with two_processes(tmp_path / path, changes, script=script) as processes:
            assert finish(processes) == ([0, 0], "")


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_ten_times_ends_like_an_undisturbed_one(tmp_path):
    path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    with two_processes(undisturbed) as processes:
        assert finish(processes) == ([0, 0], "")
    rng = random.Random(0)
    for step in sorted(rng.sample(range(3, STEPS - 3, 3), 10)):
        victim = rng.randrange(2)
        with two_processes(path) as processes:
            wait_for_step(processes[0], step)
            os.kill(processes[victim].pid, signal.SIGKILL)
            codes, error = finish(processes)
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == 1
        assert error == ("" if victim == 0 else f"error: {LOST}\n")
    with two_processes(path) as processes:
        assert finish(processes) == ([0, 0], "")
    for x, y in zip(final_params(path), final_params(undisturbed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_processes_with_different_configs_are_refused(tmp_path):
    with two_processes(tmp_path / "run", of_second={"train.seed": 3}) as processes:
        codes, error = finish(processes)
    assert codes == [1, 1]
    assert error.count("\n") == 1
    assert "config.train.seed is 0 in process 0 and 3 in process 1" in error
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_process_that_stays_alone_says_so(tmp_path):
    meet = [f"--coordinator={free_address()}", "--num_processes=2", "--process_id=0"]
    result = run("train.py", *flags(tmp_path / "run"), *meet, "--connect_timeout=1")
    assert "the processes of this run have not met" in one_error_line(result)
    assert list((tmp_path / "run").iterdir()) == []


def test_all_three_flags_are_needed(tmp_path):
    result = run("train.py", *flags(tmp_path / "run"), "--num_processes=2")
    assert "--coordinator and --process_id are missing" in one_error_line(result)


def test_processes_that_mpi_has_launched_do_not_train_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")  # as MPICH sets it, with no MPI behind it
    result = run("train.py", *flags(tmp_path / "run"))
    assert "give --coordinator, --num_processes and --process_id to each" in one_error_line(result)
    assert not (tmp_path / "run").exists()
