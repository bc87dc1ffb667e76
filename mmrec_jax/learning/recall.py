"""Recall accuracy by text length: how long a model keeps facts in its memory."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrec_jax.config import Config
from mmrec_jax.data.sources import recall
from mmrec_jax.model.lm import init_state
from mmrec_jax.model.params import Params, model_graph

MULTIPLES = (1, 4, 20, 100, 1000)
TEXTS = 16  # per task
ASKS = 4  # at each length; after different noise, so that mistakes in reading are measured too
LONG_PIECE = 512  # approximate number of tokens of noise read in one call


def recall_accuracy(
    config: Config, params: Params, multiples: tuple[int, ...] = MULTIPLES, texts: int = TEXTS
) -> tuple[dict[str, int], dict[str, list[float]]]:
    """Asks for the facts of each text after increasing amounts of noise.

    Each text is read once. At each length, copies of the state read more noise and the questions.

    Args:
        config, params: those of the run.
        multiples: text lengths as multiples of the training length, in increasing order.
        texts: number of texts per task.

    Returns:
        By task: how often an answer is asked for at each length, and the share of correct answers
        at each length.

    Raises:
        UserError: the training length is too short for the facts and questions.
    """
    length, pairs = config.train.seq_len, config.data.recall_pairs
    chunk_len = config.model.chunk_len
    short_piece, fact_length, end = recall.suite_lengths(pairs, length, chunk_len)
    long_piece = recall.round_up(LONG_PIECE, short_piece)
    read, skip = _readers(config)
    rng = np.random.default_rng((config.data.sample_seed, 3, 1))

    def draw(task):
        """Facts, then questions after noise [ASKS, end], and which of these tokens are answers."""
        text = recall.make_text(rng, task, pairs, fact_length)
        before = end - len(text.questions)
        noises = [recall.make_noise(rng, task, before) for _ in range(ASKS)]
        questions = [np.concatenate([noise, text.questions]) for noise in noises]
        return text.facts, np.stack(questions), np.pad(text.answers, (before, 0))

    drawn = [draw(task) for task in recall.TASKS for _ in range(texts)]
    facts, ends, answers = map(np.stack, zip(*drawn, strict=True))
    noise = [recall.Noise(rng, task) for task in recall.TASKS for _ in range(texts)]

    def by_task(rows):
        return np.split(rows, len(recall.TASKS))

    def ask(state, tokens):
        """Which tokens after the first are predicted, [rows, end - 1]."""
        predictions = []
        for piece in np.split(tokens, end // short_piece, axis=1):
            predicted, state = read(params, state, piece)
            predictions.append(np.asarray(predicted))
        return np.concatenate(predictions, axis=1)[:, :-1] == tokens[:, 1:]

    def ask_repeatedly(state):
        share = np.mean([ask(state, ends[:, index]) for index in range(ASKS)], axis=0)
        of_tasks = zip(by_task(share), by_task(answers[:, 1:]), strict=True)
        return [float(share[asked].mean()) for share, asked in of_tasks]

    state = init_state(config.model, len(facts))
    for tokens in np.split(facts, fact_length // short_piece, axis=1):
        _, state = read(params, state, tokens)
    position, by_length = fact_length, []
    for multiple in multiples:
        while (left := multiple * length - end - position) > 0:
            piece = long_piece if left >= long_piece else short_piece
            function = skip if piece == long_piece else read
            state = function(params, state, np.stack([of.take(piece) for of in noise]))[-1]
            position += piece
        by_length.append(ask_repeatedly(state))

    asked = [ASKS * int(rows.sum()) for rows in by_task(answers)]
    shares = map(list, zip(*by_length, strict=True))
    return dict(zip(recall.TASKS, asked, strict=True)), dict(zip(recall.TASKS, shares, strict=True))


def _readers(config: Config):
    """Compiled functions from tokens to (predictions, state), and to (state,) without logits."""
    graph = model_graph(config.model)

    def read(params, state, tokens):
        output = nnx.merge(graph, params)(tokens, jnp.zeros(tokens.shape, jnp.int32), state)
        return output.logits.argmax(axis=-1), output.state

    return jax.jit(read), jax.jit(lambda *args: read(*args)[1:])
