"""OpenWebText from JSON lines (.jsonl, .gz or .zst): byte pairs, a model of the size of mini.

    python -m mmrec_jax.commands.prepare --config=configs/openwebtext.py --config.data.path=FOLDER
    python train.py --config=configs/openwebtext.py --config.data.path=FOLDER

or from the similar corpus in TFDS, once it is prepared (see configs/c4.py):

    python train.py --config=configs/openwebtext.py --config.data.source=tfds \
        --config.data.tfds_name=c4/webtextlike
"""

from configs import c4


def get_config():
    config = c4.web_text()
    config.name = "openwebtext"
    config.data.source = "jsonl"
    config.data.path = "openwebtext"  # a folder, a file or a glob
    config.data.field = "text"
    return config
