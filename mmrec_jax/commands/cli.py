"""How the commands start: flags and readable errors."""

import os
import re
import signal
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from mmrec_jax.commands import process
from mmrec_jax.commands.compiled_programs import keep_compiled
from mmrec_jax.errors import UserError, nearest, printable
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
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in a shell's background
        signal.signal(signal.SIGINT, _interrupt)
    if keeps_memory:
        process.keep_freed_memory()
    logging.set_verbosity(logging.ERROR)  # below that, libraries log their internals
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
        _fail_interrupted()
    except BrokenPipeError:  # who reads the output, such as `head`, has enough of it
        os._exit(128 + signal.SIGPIPE)
    except MemoryError as error:
        fail(out_of_memory(str(error)))
    except RuntimeError as error:  # of JAX, which is not imported for this
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fail(out_of_memory(str(error)))
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def out_of_memory(reason: str) -> str:
    """What to say if an array does not fit into memory."""
    lines = reason.strip().splitlines()
    detail = f" ({lines[0].removeprefix('RESOURCE_EXHAUSTED: ')})" if lines else ""
    return (
        f"not enough memory{detail}; lower the batch size, the sequence length or the size of the "
        "model, or use more devices"
    )


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
    try:
        sys.stdout.flush()
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)
    finally:  # the output may be a file on a full disk
        os._exit(exit_code)


def _interrupt(_, frame: types.FrameType | None) -> None:
    """Raises KeyboardInterrupt, but ends the command at once while it imports something.

    Compiled packages turn an exception in their import into a traceback and an ImportError.
    """
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _fail_interrupted()
        frame = frame.f_back
    raise KeyboardInterrupt


def _fail_interrupted() -> None:
    fail("interrupted", exit_code=128 + signal.SIGINT)


def _checked(main, required, cached):
    def checked(_):
        require(*required)
        show_waiting()
        if cached:
            keep_compiled()
        main()

    return checked


def _parse(argv: Sequence[str]) -> list[str]:
    path = None
    for argument in argv:
        if argument.startswith("--config="):
            # What follows a colon is an argument of the config file.
            path = Path(argument.removeprefix("--config=").split(":")[0])
            _require_config_file(path)
    try:
        left = flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
        if "Traceback" in message:  # a config file raised it: the last line has the message
            message = message.strip().splitlines()[-1].split(": ", maxsplit=1)[-1]
        raise UserError(" ".join(message.split())) from error
    except (AttributeError, KeyError) as error:  # ml_collections: an override of an unknown key
        if "get_config" in str(error) or "NoneType" in str(error):
            raise UserError(_no_config(path)) from error
        key = str(error).split("\\n")[0].strip("\"'\\")
        override = next((argument for argument in argv if key in argument), key)
        known = re.findall(r'Did you mean "(\w+)"', str(error))
        hint = nearest(key, known or _siblings(key, override))
        raise UserError(f"unknown config key {key!r} in {override}{hint}") from error
    except Exception as error:  # config_flags passes on whatever a config file raises
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{path} cannot be used: {what}" if path else what) from error
    if path is not None and not hasattr(flags.FLAGS.config, "to_dict"):
        raise UserError(_no_config(path))
    if len(left) > 1:
        raise UserError(f"{left[1]!r} is not a flag; flags look like --name=value")
    return left


def _siblings(key: str, override: str) -> list[str]:
    """The keys that might have been meant by one in an override such as --config.model.dmi=3."""
    from mmrec_jax.config import default_config

    section = default_config()
    for name in override.split("=")[0].split(".")[1:]:
        if name == key or not hasattr(section, "keys"):
            break
        section = section.get(name)
    return list(section.keys()) if hasattr(section, "keys") else []


def _no_config(path: Path | None) -> str:
    return (
        f"{path} must have a function get_config that returns a ConfigDict, such as that of "
        "configs/tiny.py"
    )


def _require_config_file(path: Path) -> None:
    if not path.is_file():
        near = nearest(str(path), [str(other) for other in path.parent.glob("*.py")])
        raise UserError(f"there is no config file {path}{near}")
