"""WikiText-103, 28,475 articles of Wikipedia, with its published splits: byte pairs.

    python -m mmrec_jax.commands.prepare --config=configs/wikitext103.py
    python train.py --config=configs/wikitext103.py
    python eval.py --workdir=runs/wikitext103 --split=test

reads wiki.train.raw, wiki.valid.raw and wiki.test.raw in wikitext-103-raw, the folder in the
archive wikitext-103-raw-v1.zip that Salesforce Research publishes.

Compare `perplexity per word` with published figures; as there, a line end counts as a word. For the
test split: Transformer-XL 24.0 (151M parameters) and 18.3 (257M) (Dai et al. 2019, "Transformer-XL:
Attentive Language Models beyond a Fixed-Length Context"); Compressive Transformer 17.1 (Rae et al.
2020, "Compressive Transformers for Long-Range Sequence Modelling"). Those models read the version
in which rare words are replaced by <unk>. The raw text spells them, which is harder to predict. To
read that version: --config.data.path=wikitext-103/wiki.train.tokens, and so on.

Not trained with this code yet.
"""

from configs import c4


def get_config():
    config = c4.web_text()
    config.name = "wikitext103"

    config.data.source = "text"
    config.data.path = "wikitext-103-raw/wiki.train.raw"
    config.data.validation_path = "wikitext-103-raw/wiki.valid.raw"
    config.data.test_path = "wikitext-103-raw/wiki.test.raw"
    config.data.count_line_ends = True

    config.train.carry_memory = True
    config.train.carry_windows = 16
    return config
