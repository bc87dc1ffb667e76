"""How the commands start: flags and readable errors."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from mmrec_jax.commands import process
from mmrec_jax.commands.compiled_programs import keep_compiled
from mmrec_jax.errors import UserError, nearest
from mmrec_jax.waiting import show_waiting

# Packages that only some commands need, and the part of the installation that brings each.
EXTRAS = {
    "matplotlib": "report",
    "jinja2": "report",
    "tensorflow_datasets": "tfds",
    "pyarrow": "parquet",
}


def run(
    main: Callable[[], None],
    required: Sequence[str] = (),
    cached: bool = True,
    keeps_memory: bool = False,
) -> None:
    """Parses the flags, runs `main`, and exits.

    A `UserError`, or an error that absl or ml_collections raises for bad flags, becomes one line on
    standard error and exit code 1; Ctrl-C becomes one line and exit code 130.

    Args:
        main: the command.
        required: names of the flags that must be given.
        cached: whether programs are kept for later commands, and taken from earlier ones; not for a
            command that shows what it takes to compile them.
        keeps_memory: whether the process keeps freed memory, with which training steps are faster,
            but compiling takes longer (process.py).
    """
    if keeps_memory:
        process.keep_freed_memory()
    logging.set_verbosity(logging.WARNING)  # below that, libraries log their internals
    sys.unraisablehook = lambda _: None  # silences Orbax's event loops after a failed save
    try:
        app.run(_checked(main, required, cached), flags_parser=_parse)
    except UserError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        fail(missing(error.name))
    except KeyboardInterrupt:
        fail("interrupted", exit_code=128 + signal.SIGINT)
    except BrokenPipeError:  # who reads the output, such as `head`, has enough of it
        os._exit(128 + signal.SIGPIPE)
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def missing(package: str) -> str:
    """What to say if one of EXTRAS is not installed."""
    return f"{package} is not installed; in the repository, pip install '.[{EXTRAS[package]}]'"


def require(*names: str) -> None:
    """Raises UserError if a required flag is not given."""
    for name in names:
        if flags.FLAGS[name].value is None:
            raise UserError(f"--{name} is missing; see --help")


def fail(message: str, exit_code: int = 1) -> None:
    """Prints one line and exits immediately, so that no thread prints a traceback after it."""
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(exit_code)


def _checked(main, required, cached):
    def checked(_):
        require(*required)
        show_waiting()
        if cached:
            keep_compiled()
        main()

    return checked


def _parse(argv: Sequence[str]) -> list[str]:
    for argument in argv:
        if argument.startswith("--config="):
            # What follows a colon is an argument of the config file.
            _require_config_file(Path(argument.removeprefix("--config=").split(":")[0]))
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
        if "Traceback" in message:  # a config file raised it: the last line has the message
            message = message.strip().splitlines()[-1].split(": ", maxsplit=1)[-1]
        raise UserError(" ".join(message.split())) from error
    except (AttributeError, KeyError) as error:  # ml_collections: an override of an unknown key
        key = str(error).split("\\n")[0].strip("\"'\\")
        nearest = re.search(r'Did you mean "(\w+)"', str(error))
        hint = f" (did you mean {nearest[1]!r}?)" if nearest else ""
        override = next((argument for argument in argv if key in argument), key)
        raise UserError(f"unknown config key {key!r} in {override}{hint}") from error
    except Exception as error:  # config_flags passes on whatever a config file raises
        raise UserError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    if len(left) > 1:
        raise UserError(f"{left[1]!r} is not a flag; flags look like --name=value")
    return left


def _require_config_file(path: Path) -> None:
    if not path.is_file():
        near = nearest(str(path), [str(other) for other in path.parent.glob("*.py")])
        raise UserError(f"there is no config file {path}{near}")
