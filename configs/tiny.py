"""The tiny model: 1,960,832 parameters, trained on two CPU cores in about half a minute.

    python train.py --config=configs/tiny.py

Expected: 378 steps in 3 epochs; the mean training loss of the last epoch is about 0.65, the best
validation loss about 0.48.

On your own text:

    python train.py --config=configs/tiny.py --config.data.source=text \
        --config.data.path='books/*.txt' --workdir=runs/books
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.name = "tiny"  # the workdir is runs/<name> unless --workdir says otherwise

    config.init_from = ""  # workdir of a run whose model this one grows from; "": a fresh model

    config.growth = growth = ml_collections.ConfigDict()  # where init_from is set
    growth.checkpoint = "best"  # of that run: or latest, final, a step
    growth.placement = "top"  # new layers: after all others, or "spread" between them
    growth.moments = "fresh"  # Adam's, or those of that run: "grown"
    growth.noise = 1.0  # new weights start as in a fresh model, times this
    growth.old_rate = 1.0  # learning rate of what that run had, as a share of that of the new
    growth.warmup_steps = 20  # instead of train.warmup_steps

    config.model = model = ml_collections.ConfigDict()
    model.vocab_size = 5_000  # V; the characters of a corpus use only some of them
    model.dim = 128  # D
    model.num_layers = 4  # L
    model.num_heads = 4  # H
    # Measured (docs/performance.md): S = C of 16 or 32 and M of 0 to 64 differ by less than 0.01 in
    # validation loss after 300 steps, one seed each, which decides nothing. So: small enough that a
    # window of 256 tokens overflows them, and the bank and saliency are trained.
    model.chunk_len = 32  # C
    model.short_term = 32  # S
    model.long_term = 32  # M
    model.dropout = 0.1  # on the output of both halves of a block and inside the feed-forward
    model.mu = 0.1  # weight of the gated integration
    model.shifted_keys = True  # even heads look for what came after an earlier occurrence
    model.saliency_weight = 0.3  # of the loss that teaches saliency to predict use
    model.saliency_queries = 64  # queries a sequence that this loss looks at, at most
    model.use_dpg = False  # low-rank term in the decay logit
    model.dpg_rank = 128
    model.use_uboo = False  # auxiliary loss that predicts the state
    model.uboo_weight = 0.1
    model.dtype = "float32"  # or "bfloat16"; the recurrence and the softmax stay float32
    model.remat = False  # recompute blocks in the backward pass: less memory on an accelerator

    config.data = data = ml_collections.ConfigDict()
    data.source = "sample"  # generated sentences; or text, jsonl, python_docs, tfds, recall
    data.path = ""  # for "text" and "jsonl": a file, a folder or a glob
    data.field = "text"  # for "jsonl" and "tfds": where in each document the text is
    data.tfds_name = ""  # for "tfds": such as "c4/en"
    data.tfds_dir = ""  # for "tfds": the folder of datasets; "": TFDS's own choice
    data.tfds_split = ""  # for "tfds": what to train on, such as "train[:10%]"
    data.tokenizer = "char"  # or "byte", "bpe", a tokenizer.json; "word" for "recall"
    data.validation_fraction = 0.05  # where the corpus has no splits of its own
    data.test_fraction = 0.05
    data.sample_seed = 0  # for "sample"
    data.sample_chars = 64_600  # for "sample": training split, 126 steps of 2 x 256 tokens
    data.recall_pairs = 8  # for "recall"
    data.recall_fewest = 0  # for "recall"
    data.recall_steps = 100  # for "recall": steps an epoch

    config.train = train = ml_collections.ConfigDict()
    train.seed = 0  # of the initial parameters, the order of the windows and dropout
    train.batch_size = 2  # sequences a step
    train.seq_len = 256  # T, a multiple of model.chunk_len
    train.num_epochs = 3
    train.num_steps = 0  # steps in all, instead of num_epochs
    train.num_tokens = 0  # tokens in all, instead of num_epochs or num_steps
    train.learning_rate = 3e-4  # peak of AdamW's
    train.initial_learning_rate = 3e-5  # the warm-up rises from here
    train.final_learning_rate = 3e-5  # the cosine falls to here at the last step
    train.warmup_steps = 100
    train.weight_decay = 0.1  # on matrices
    train.b1 = 0.9
    train.b2 = 0.95
    train.clip_norm = 1.0  # largest global norm of the gradient
    train.carry_memory = False  # each lane of the batch reads on where the step before ended
    train.carry_windows = 0  # sequences it reads on before it starts elsewhere; 0: its whole share
    train.accumulate_steps = 1  # micro-batches a step
    train.eval_every = 0  # steps; 0: only after each epoch
    train.eval_batch_size = 8
    train.patience = 3  # evaluations without improvement before training stops; 0: never
    train.min_improvement = 0.0  # nats a token; what improves by less has not, for patience
    train.checkpoint_every = 100  # steps
    train.keep_checkpoints = 3  # newest ones, besides the best
    train.log_every = 10  # steps between progress lines where there is no terminal
    return config
