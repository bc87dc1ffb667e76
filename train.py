"""Trains a model, or goes on with it: python train.py --config=configs/tiny.py"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmrec_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/tiny.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<config.name>.")


def main():
    from mmrec_jax.config import from_mapping, nearest
    from mmrec_jax.errors import UserError
    from mmrec_jax.training.loop import Interrupted, train

    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not file.exists():
        near = nearest(str(file), [str(other) for other in file.parent.glob("*.py")])
        raise UserError(f"there is no config file {file}{near}")
    config = from_mapping(_CONFIG.value)
    try:
        train(config, Path(_WORKDIR.value or f"runs/{config.name}"))
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)


if __name__ == "__main__":
    cli.run(main, required=["config"])
