"""Sampling, compared with the model that reads the whole text anew for every token."""

import functools

import numpy as np
import pytest

import helpers
from mmrec_jax.errors import UserError
from mmrec_jax.generation import generate

pytestmark = pytest.mark.usefixtures("quick_compiling")

CHUNK = 4


@functools.cache
def sampled(seed):
    """Near-uniform samples of a model whose tokenizer uses half of its ids."""
    config = helpers.small_config(num_layers=1, use_uboo=False, use_dpg=False)
    prompt = helpers.random_tokens(1, 5)[0]
    params = helpers.random_params(config)
    return list(
        generate(config, params, prompt, helpers.VOCAB // 2, 40, temperature=30.0, seed=seed)
    )


def test_greedy_text_is_that_of_the_model_that_reads_it_all_again():
    config = helpers.small_config()
    params = helpers.random_params(config)
    prompt = list(helpers.random_tokens(1, 2 * CHUNK + 3)[0])
    count = 3 * CHUNK
    # Padding after a token has no part in its logits.
    padded = np.zeros((1, len(prompt) + count + 1), np.int32)
    assert padded.shape[1] % CHUNK == 0
    forward, expected = helpers.forward(config), list(prompt)
    for _ in range(count):
        padded[0, : len(expected)] = expected
        logits = forward(params, padded, np.zeros_like(padded)).logits[0, len(expected) - 1]
        expected.append(int(np.argmax(logits)))
    tokens = generate(config, params, np.array(prompt), helpers.VOCAB, count, temperature=0.0)
    assert list(tokens) == expected[len(prompt) :]
    assert len(set(expected[len(prompt) :])) > 2


def test_the_same_seed_writes_the_same_text_and_another_one_another():
    again = sampled.__wrapped__(0)
    assert again == sampled(0)
    assert sampled(1) != sampled(0)


def test_ids_that_the_tokenizer_does_not_use_are_never_sampled():
    tokens = sampled(0) + sampled(1)
    assert len(tokens) == 80
    assert max(tokens) < helpers.VOCAB // 2
    assert len(set(tokens)) > helpers.VOCAB // 4


def test_an_empty_prompt_is_refused():
    config = helpers.small_config()
    with pytest.raises(UserError, match="prompt is empty"):
        next(generate(config, helpers.random_params(config), np.zeros(0, np.int32), 5, 3))
