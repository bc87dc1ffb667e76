"""The list of all knobs declared in `config/`, as Markdown that also reads well in a terminal.

python train.py --help_config
python -m mmrec_jax.commands.config_help > docs/config.md
"""

import textwrap

from mmrec_jax.config import Config
from mmrec_jax.knobs import describe, sections

_START = """\
# Every knob of a config

Set a knob in a config file, or as a flag: --config.train.learning_rate=1e-3. A knob without a
default must be set. `python train.py --help_config` prints this list, which is declared in
mmrec_jax/config/; `python -m mmrec_jax.commands.config_help > docs/config.md` writes it here.
"""


def text() -> str:
    """Every knob with its default, type and meaning."""
    lines = [_START]
    for section in sections(Config):
        lines += [f"## {section.PREFIX.rstrip('.') or 'The run'}", "", section.__doc__, ""]
        knobs = [f"- {knob}" for knob in describe(section)]
        lines += [textwrap.fill(knob, 100, subsequent_indent="  ") for knob in knobs] + [""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(text(), end="")
