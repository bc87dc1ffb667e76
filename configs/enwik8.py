"""enwik8, the first 100,000,000 bytes of a dump of Wikipedia, by bytes.

    head -c 90000000 enwik8 | iconv -c -f utf-8 -t utf-8 > enwik8_train.txt
    tail -c 10000000 enwik8 | head -c 5000000 | iconv -c -f utf-8 -t utf-8 > enwik8_validation.txt
    tail -c 5000000 enwik8 | iconv -c -f utf-8 -t utf-8 > enwik8_test.txt
    python train.py --config=configs/enwik8.py
    python eval.py --workdir=runs/enwik8 --split=test

The file is in enwik8.zip of Matt Mahoney's Large Text Compression Benchmark. The splits are the
published ones: 90, 5 and 5 million bytes. `iconv` only removes what is left of a character that
such a cut divides.

Compare `bits per byte` with what is published as bits per character. For the test split:
Transformer-XL 1.06 with 12 layers and 41M parameters, 0.99 with 24 layers and 277M (Dai et al.
2019, "Transformer-XL: Attentive Language Models beyond a Fixed-Length Context").

Not trained with this code yet.
"""

from configs import c4


def get_config():
    config = c4.web_text()
    config.name = "enwik8"

    config.model.vocab_size = 258

    config.data.source = "text"
    config.data.path = "enwik8_train.txt"
    config.data.validation_path = "enwik8_validation.txt"
    config.data.test_path = "enwik8_test.txt"
    config.data.tokenizer = "byte"

    config.train.carry_memory = True
    config.train.carry_windows = 16
    return config
