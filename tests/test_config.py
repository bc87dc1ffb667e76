"""The config: every mistake raises one UserError that names the knob and its value."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import pytest

from configs import tiny
from mmrec_jax import checksums
from mmrec_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
    differences,
    from_mapping,
)
from mmrec_jax.errors import UserError
from mmrec_jax.model.interface import mmrec
from small_runs import ROOT, config


def mapping(**changes):
    """The tiny config as plain dicts; `model__dim=6` sets model.dim."""
    values = tiny.get_config().to_dict()
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    return values


@pytest.mark.parametrize(
    ("section", "cls"), [("model", ModelConfig), ("data", DataConfig), ("train", TrainConfig)]
)
def test_the_tiny_config_lists_every_knob_so_that_each_can_be_overridden(section, cls):
    assert set(tiny.get_config()[section]) == {field.name for field in dataclasses.fields(cls)}


def test_the_tiny_config_lists_every_section():
    assert set(tiny.get_config()) == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"model__chunk_length": 8}, ["model.chunk_length", "did you mean 'chunk_len'?"]),
        ({"train__warmup": 8}, ["train.warmup", "did you mean 'warmup_steps'?"]),
        ({"modle": {}}, ["modle", "did you mean 'model'?"]),
        ({"data__zzzzzz": 8}, ["unknown config key data.zzzzzz"]),
    ],
)
def test_an_unknown_key_names_the_nearest(changes, fragments):
    with pytest.raises(UserError) as error:
        from_mapping(mapping(**changes))
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize("key", ["name", "model.dim", "data.source", "train.batch_size"])
def test_a_missing_key_is_named(key):
    values = mapping()
    *sections, name = key.split(".")
    del (values[sections[0]] if sections else values)[name]
    with pytest.raises(UserError, match=f"config key {key} is missing"):
        from_mapping(values)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("model.dim", 16.0, "an integer"),
        ("model.dim", True, "an integer"),
        ("model.dim", "16", "an integer"),
        ("model.dim", None, "missing"),
        ("model.dropout", "0.1", "a number"),
        ("model.dropout", True, "a number"),
        ("model.remat", 1, "true or false"),
        ("data.path", 7, "a string"),
        ("train", 3, "a section"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key, value, wanted):
    with pytest.raises(UserError) as error:
        from_mapping(mapping(**{key.replace(".", "__"): value}))
    assert f"config key {key} " in str(error.value)
    assert wanted in str(error.value)


def test_an_integer_is_accepted_as_a_number():
    cfg = from_mapping(mapping(train__weight_decay=0))
    assert type(cfg.train.weight_decay) is float


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"model__dim": 10, "model__num_heads": 4}, ["model.dim 10", "model.num_heads 4"]),
        ({"model__dim": 12, "model__num_heads": 4}, ["model.num_heads is 3", "even"]),
        ({"model__dim": 6, "model__num_heads": 1}, ["model.dim 6", "divisible by 4"]),
        ({"model__short_term": 40}, ["model.short_term 40", "model.chunk_len 16"]),
        ({"train__seq_len": 250}, ["train.seq_len 250", "model.chunk_len 16"]),
        ({"model__dropout": 1.0}, ["model.dropout is 1.0"]),
        ({"model__dropout": -0.1}, ["model.dropout is -0.1"]),
        ({"model__dropout": float("nan")}, ["model.dropout is nan"]),
        ({"model__mu": 0.0}, ["model.mu is 0.0"]),
        ({"model__mu": 1.0}, ["model.mu is 1.0"]),
        ({"model__dtype": "float16"}, ["model.dtype is 'float16'", "float32, bfloat16, float64"]),
        ({"model__vocab_size": 0}, ["model.vocab_size is 0", "at least 1"]),
        ({"model__num_layers": 0}, ["model.num_layers is 0", "at least 1"]),
        ({"model__num_heads": 0}, ["model.num_heads is 0", "at least 1"]),
        ({"model__chunk_len": 0}, ["model.chunk_len is 0", "at least 1"]),
        ({"model__saliency_queries": 0}, ["model.saliency_queries is 0", "at least 1"]),
        ({"model__dpg_rank": 0}, ["model.dpg_rank is 0", "at least 1"]),
        ({"model__recurrence_interval": 0}, ["model.recurrence_interval is 0", "at least 1"]),
        ({"model__recurrence_iterations": 0}, ["model.recurrence_iterations is 0", "at least 1"]),
        ({"model__recurrence_tolerance": 1e-9}, ["recurrence_tolerance 1e-09", "at least 1e-06"]),
        ({"model__short_term": -32}, ["model.short_term is -32", "at least 0"]),
        ({"model__long_term": -1}, ["model.long_term is -1", "at least 0"]),
        ({"model__saliency_weight": -0.5}, ["model.saliency_weight is -0.5", "at least 0"]),
        ({"data__source": "web"}, ["data.source is 'web'", "sample, text"]),
        ({"data__source": "text"}, ["data.path is empty"]),
        ({"data__tokenizer": "word"}, ["data.tokenizer is 'word'", "go together"]),
        ({"data__validation_fraction": 0.0}, ["data.validation_fraction is 0.0"]),
        ({"data__test_fraction": 0.5}, ["data.test_fraction is 0.5"]),
        ({"data__sample_chars": 0}, ["data.sample_chars is 0", "at least 1"]),
        ({"train__seed": -1}, ["train.seed is -1", "at least 0"]),
        ({"train__num_epochs": 0}, ["train.num_epochs is 0", "at least 1"]),
        ({"train__warmup_steps": -1}, ["train.warmup_steps is -1", "at least 0"]),
        ({"train__learning_rate": -1e-3}, ["train.learning_rate is -0.001", "at least 0"]),
        ({"train__learning_rate": float("nan")}, ["train.learning_rate is nan"]),
        ({"train__clip_norm": 0.0}, ["train.clip_norm is 0.0", "above 0"]),
        ({"train__b1": 1.0}, ["train.b1 is 1.0"]),
        ({"train__b2": -0.1}, ["train.b2 is -0.1"]),
        ({"train__accumulate_steps": 0}, ["train.accumulate_steps is 0", "at least 1"]),
        (
            {"train__batch_size": 6, "train__accumulate_steps": 4},
            ["train.batch_size 6", "train.accumulate_steps 4"],
        ),
        ({"train__eval_batch_size": 0}, ["train.eval_batch_size is 0", "at least 1"]),
        ({"train__keep_checkpoints": 0}, ["train.keep_checkpoints is 0", "at least 1"]),
        ({"train__checkpoint_every": 0}, ["train.checkpoint_every is 0", "at least 1"]),
        ({"train__log_every": 0}, ["train.log_every is 0", "at least 1"]),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_named_in_one_line(changes, fragments):
    with pytest.raises(UserError) as error:
        from_mapping(mapping(**changes))
    for fragment in fragments:
        assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_survives_json():
    cfg = config(model__use_dpg=True, train__learning_rate=1.23456789e-7, data__path="ağaç/*.txt")
    assert from_mapping(checksums.unsealed(cfg.to_json())) == cfg


def test_differences_lists_every_knob_that_is_not_equal():
    one = config()
    other = config(model__long_term=5, train__seed=3, data__path="x")
    assert differences(one, config()) == []
    assert differences(one, dataclasses.replace(one, name="b")) == ["name: 'tiny' -> 'b'"]
    assert differences(one, other) == [
        "model.long_term: 4 -> 5",
        "data.path: '' -> 'x'",
        "train.seed: 0 -> 3",
    ]


@pytest.mark.parametrize(("more", "trains"), [(0, False), (8, True)])
def test_saliency_is_trained_if_a_token_leaves_short_term_memory(more, trains):
    cfg = config(model__short_term=16, model__chunk_len=8, train__seq_len=24 + more)
    assert cfg.trains_saliency == trains
    model, tokens = mmrec(cfg.model), jnp.zeros((1, cfg.train.seq_len), jnp.int32)

    def loss(key):
        return model.apply(model.init_params(key), tokens, tokens, None, key).aux.saliency

    assert (jax.jit(loss)(jax.random.key(0)) > 0) == trains


CONFIGS = {path.stem for path in (ROOT / "configs").glob("[a-z]*.py")} - {"ladder"}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_config_trains_its_saliency(name):
    cfg = from_mapping(importlib.import_module(f"configs.{name}").get_config())
    assert cfg.trains_saliency
