"""WikiText-2, 600 articles of Wikipedia, with its published splits: byte pairs.

    python train.py --config=configs/wikitext2.py
    python eval.py --workdir=runs/wikitext2 --split=test

reads wiki.train.raw, wiki.valid.raw and wiki.test.raw in wikitext-2-raw, the folder in the archive
wikitext-2-raw-v1.zip that Salesforce Research publishes.

Compare `perplexity per word` with published figures, with the reservation in
configs/wikitext103.py. For the test split: AWD-LSTM 65.8 (33M parameters; Merity et al. 2018,
"Regularizing and Optimizing LSTM Language Models").

Not trained with this code yet.
"""

from configs import wikitext103


def get_config():
    config = wikitext103.get_config()
    config.name = "wikitext2"

    config.model.dropout = 0.2

    config.data.path = "wikitext-2-raw/wiki.train.raw"
    config.data.validation_path = "wikitext-2-raw/wiki.valid.raw"
    config.data.test_path = "wikitext-2-raw/wiki.test.raw"

    config.train.num_epochs = 20
    config.train.warmup_steps = 200
    config.train.eval_every = 0
    config.train.patience = 3
    return config
