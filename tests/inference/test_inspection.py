"""`look_inside`, compared with the token-by-token oracle."""

import jax
import numpy as np
import pytest

import helpers
import oracle
from mmrec_jax.inference.inspection import look_inside


@pytest.mark.parametrize(
    ("time", "changes"),
    [(3, {}), (45, {}), (32, {"short_term": 0}), (13, {"long_term": 0})],
    ids=str,
)
def test_look_inside_equals_oracle(time, changes):
    config = helpers.small_config(dtype="float64", **changes)
    tokens = helpers.random_tokens(1, time, vocab=7)[0]
    with jax.enable_x64(True):
        params = helpers.random_params(config)
        inside = look_inside(config, params, tokens)
    _, traces = oracle.run_text(params, config, tokens, np.zeros(time, np.int32))
    for layer, trace in enumerate(traces):
        np.testing.assert_allclose(inside.saliency[layer], trace.s.T, rtol=0, atol=1e-10)
        half_life = np.log(0.5) / np.log(trace.decay).mean(axis=0)
        np.testing.assert_allclose(inside.half_life[layer], half_life, rtol=1e-9)
        for head, bank in enumerate(trace.banks):
            assert np.flatnonzero(inside.kept[layer, head]).tolist() == sorted(bank)
    offered = max(time // config.chunk_len * config.chunk_len - config.short_term, 0)
    assert np.flatnonzero(inside.short_term).tolist() == list(range(offered, time))
