"""The cases of a storm: what is done in each of them, and whether it has passed."""

import random
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.commands import COMMANDS, Command, Results
from benchmarks.faults.injection import (
    FAULTS,
    HUNG,
    TOO_LONG,
    Fault,
    Process,
    Running,
    failing_disk,
    strike_after,
)
from mmrec_jax.checksums import Damaged
from mmrec_jax.errors import UserError
from mmrec_jax.files import is_leftover

OUTCOMES = (
    "too late",
    "went on",
    "same bits",
    "hung, same bits",
    "loss told",
    "failed",
)


class Undisturbed(NamedTuple):
    """A command to which nothing happens."""

    folder: Path
    seconds: float
    results: list[Results]  # after it was given once, and twice if that differs


class Case(NamedTuple):
    """What has happened in a case."""

    number: int
    command: str
    fault: str
    outcome: str
    problem: str = ""


class Storm:
    """The cases of a seed, in folders below `root`."""

    def __init__(self, root: Path, seed: int, numbers: Iterable[int]):
        """Runs the commands of these cases without a fault.

        Raises:
            UserError: one of them fails.
        """
        self._root, self._seed, self._undisturbed = root, seed, {}
        self._library = failing_disk(root)
        names = {_command(number) for number in numbers}
        names |= {COMMANDS[name].reads for name in names} - {""}
        for name in filter(names.__contains__, COMMANDS):
            self._undisturbed[name] = self._run_undisturbed(name)

    def _run_undisturbed(self, name: str) -> Undisturbed:
        command, results, seconds = COMMANDS[name], [], 0.0
        for with_cache in (False, True):  # the second takes as long as those of the cases
            folder = self._new_folder(f"undisturbed {name} {with_cache}", name, with_cache)
            for _ in range(1 if command.may_repeat else 2):
                begin = time.perf_counter()
                endings = _wait(self._start(name, folder))
                if any(code for code, *_ in endings):
                    raise UserError(f"{name} fails without a fault: {endings[0][2][-500:]}")
                seconds = time.perf_counter() - begin
                results.append(command.results(folder))
            self._undisturbed[name] = Undisturbed(folder, seconds, results)
        first, last = results[0], results[len(results) // 2]
        if different := [key for key in first if first[key] != last.get(key)]:
            raise UserError(f"{name} ends otherwise every time: {', '.join(different)}")
        print(f"{name}: {seconds:.0f} s", flush=True)
        return Undisturbed(folder, seconds, results[: len(results) // 2])

    def _new_folder(self, name: str, command: str, with_cache: bool) -> Path:
        folder = self._root / name.replace(" ", "_")
        for path in (folder, folder.with_suffix(".output")):
            shutil.rmtree(path, ignore_errors=True)
        (folder / "cache").mkdir(parents=True)
        (folder / "control").write_bytes(b"\0")
        if source := COMMANDS[command].reads:
            shutil.copytree(self._undisturbed[source].folder / "run", folder / "source")
        (folder / "run").mkdir()
        if with_cache:
            compiled = self._undisturbed[command].folder / "cache/compiled"
            if compiled.exists():
                shutil.copytree(compiled, folder / "cache/compiled")
        return folder

    def _start(self, name: str, folder: Path, **environment: str) -> list[Process]:
        command = COMMANDS[name]
        return [
            Process(x, folder, dict(command.environment) | environment)
            for x in command.processes(folder)
        ]

    def case(self, number: int) -> Case:
        """Runs one case, and deletes its folder unless it fails."""
        name = _command(number)
        fault = list(FAULTS)[number % len(FAULTS)]
        folder = self._new_folder(f"case {number}", name, with_cache=True)
        rng = random.Random(f"{self._seed}/{number}")
        try:
            outcome, problem = self._disturb(rng, name, fault, folder)
        except Exception as error:  # the other cases go on
            outcome, problem = "", f"the storm cannot tell: {error!r}"
        if not problem:
            for path in (folder, folder.with_suffix(".output")):
                shutil.rmtree(path)
        return Case(number, name, fault, "failed" if problem else outcome, problem)

    def _disturb(self, rng: random.Random, name: str, fault: str, folder: Path) -> tuple[str, str]:
        """The outcome of a case, and what was wrong."""
        undisturbed, command = self._undisturbed[name], COMMANDS[name]
        preload = {
            "LD_PRELOAD": str(self._library),
            "FAULTS_CONTROL": str(folder / "control"),
            "FAULTS_FOLDER": f"{folder}/",
        }

        def start():
            return self._start(name, folder, **preload)

        running = Running(folder, start(), start)
        changed = strike_after(rng.uniform(0, undisturbed.seconds), FAULTS[fault], rng, running)
        endings = _wait(running.processes)
        running.disk("")
        hit = FAULTS[fault] if changed is not None else None
        if problem := _wrong_ending(endings, hit):
            return "", problem
        outcome = "same bits"
        if changed is None:
            outcome = "too late"
        elif not any(code for code, *_ in endings):
            outcome = "went on"
        elif any(code == HUNG for code, *_ in endings):
            outcome = "hung, same bits"

        expected = undisturbed.results[: 2 if fault == "the command twice" else 1]
        found, told = _results(command, folder), ""
        if command.may_repeat or found not in expected:
            endings = _wait(self._start(name, folder))
            told = "".join(out + errors for _, out, errors in endings)
            if any(code for code, *_ in endings):
                if changed and _is_told(changed, told):
                    return "loss told", ""
                return "", f"given again, it ends with {endings[0][0]}: {told[-500:]}"
            found = _results(command, folder)
        if found not in expected:
            if changed and _is_told(changed, told) and found.items() <= expected[0].items():
                return "loss told", ""
            different = [key for key in expected[0] if found.get(key) != expected[0][key]]
            return "", f"{', '.join(different[:5])} differ{f' ({changed})' if changed else ''}"
        if left := [x for x in folder.rglob("*") if is_leftover(x) or ".partial" in x.name]:
            return "", f"left {left[0].relative_to(folder)}"
        return outcome, ""


def _command(number: int) -> str:
    return list(COMMANDS)[number % len(COMMANDS)]


def _wait(processes: list[Process]) -> list[tuple[int, str, str]]:
    end = time.monotonic() + TOO_LONG
    return [process.wait(end) for process in processes]


def _results(command: Command, folder: Path) -> Results:
    """What a command has left; empty if it cannot be read."""
    try:
        return command.results(folder)
    except (OSError, UserError, ValueError, Damaged):
        return {}


def _wrong_ending(endings: list[tuple[int, str, str]], fault: Fault | None) -> str:
    """What is wrong with the way in which the processes of a command have ended."""
    with_a_line = fault and (fault.with_a_line or (fault.of_several and len(endings) > 1))
    for code, out, errors in endings:
        if code == HUNG and not (fault and fault.may_hang):
            return f"was not over after {TOO_LONG} s: {(out + errors)[-300:]}"
        if code == 0 or (fault and fault.with_a_crash) or _is_before_start(errors):
            continue
        if not with_a_line:
            return f"ended with {code}: {errors[-500:]}"
        lines = re.sub(
            "^(reading|evaluating|preparing|writing) .*\n", "", errors, flags=re.MULTILINE
        )
        if "Traceback" in out + errors or len(lines.splitlines()) > 1:
            return f"more than a line: {(out + errors)[-1500:]}"
    return ""


def _is_before_start(errors: str) -> bool:
    """Whether Ctrl-C has come while Python still imported modules, before any of our code."""
    return errors.rstrip().endswith("KeyboardInterrupt") and "cli.run(" not in errors


def _is_told(file: str, said: str) -> bool:
    """Whether a command has said that a file, or the folder it is in, is damaged."""
    *folders, name = Path(file).parts
    checkpoints = [f"checkpoint {folder} " for folder in folders if folder.isdigit()]
    return any(known in said for known in (name, f"/{folders[-1]} ", *checkpoints))
