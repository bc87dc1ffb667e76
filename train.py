"""Trains a model, or goes on with it: python train.py --config=configs/tiny.py"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmrec_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/tiny.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<config.name>.")


def main():
    from mmrec_jax.config import from_mapping
    from mmrec_jax.training.loop import Interrupted, train

    config = from_mapping(_CONFIG.value)
    try:
        train(config, Path(_WORKDIR.value or f"runs/{config.name}"))
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)


if __name__ == "__main__":
    cli.run(main, required=["config"])
