"""OpenWebText by byte pairs, at the size of mini, from its JSON lines (.jsonl, .gz or .zst).

    python -m mmrec_jax.commands.prepare --config=configs/openwebtext.py --config.data.path=FOLDER
    python train.py --config=configs/openwebtext.py --config.data.path=FOLDER

or the like of it that TFDS has, where that is prepared (see configs/c4.py):

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
