"""The list of all knobs declared in `config.py`, for a terminal and for the docs.

python train.py --help_config
python -m mmrec_jax.commands.config_help > docs/config.md
"""

import dataclasses
import shutil
import textwrap

from mmrec_jax.config import Config
from mmrec_jax.knobs import Described, describe

HOW_TO_SET = (
    "Set a knob in a config file, or as a flag: --config.train.learning_rate=1e-3. A knob without "
    "a default must be set."
)


def text() -> str:
    """Every knob with its default, type and meaning, wrapped to the width of the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    lines, section = [textwrap.fill(HOW_TO_SET, width)], None
    for knob in describe(Config):
        prefix, _, _ = knob.key.rpartition(".")
        if prefix != section:
            section = prefix
            lines += ["", textwrap.fill(_section_meaning(prefix), width), ""]
        default = f" = {_default(knob)}" if _default(knob) else ""
        indents = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}
        lines.append(f"  {knob.key}{default}   ({knob.kind})")
        lines.append(textwrap.fill(knob.meaning, width, **indents))
    return "\n".join(lines)


def markdown() -> str:
    """The contents of docs/config.md."""
    lines = [
        "# Every knob of a config",
        "",
        "<!-- Made by `python -m mmrec_jax.commands.config_help > docs/config.md`. -->",
        "",
        f"{HOW_TO_SET} `python train.py --help_config` prints this list, which is declared in "
        "[mmrec_jax/config.py](../mmrec_jax/config.py).",
    ]
    section = None
    for knob in describe(Config):
        prefix, _, name = knob.key.rpartition(".")
        if prefix != section:
            section = prefix
            lines += ["", f"## {prefix or 'The run'}", "", _section_meaning(prefix), ""]
            lines += ["| knob | default | type | meaning |", "|---|---|---|---|"]
        default = f"`{_default(knob)}`" if _default(knob) else ""
        lines.append(
            f"| `{name}` | {default} | {knob.kind} | {knob.meaning} |".replace("<", "&lt;")
        )
    return "\n".join(lines) + "\n"


def _default(knob: Described) -> str:
    if knob.default is dataclasses.MISSING:
        return ""
    return f'"{knob.default}"' if isinstance(knob.default, str) else str(knob.default)


def _section_meaning(prefix: str) -> str:
    types = {field.name: field.type for field in dataclasses.fields(Config)}
    return types.get(prefix, Config).__doc__


if __name__ == "__main__":
    print(markdown(), end="")
