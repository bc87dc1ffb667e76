"""Comparing runs: equal models lose the same, and texts that cannot be compared are refused."""

import json
import shutil

import pytest

import mmrec_jax
from mmrec_jax import checksums
from mmrec_jax.errors import UserError
from mmrec_jax.report.evaluation import evaluate_run
from mmrec_jax.report.loss_comparison import compare_losses


@pytest.fixture
def twins(trained_run, tmp_path):
    """Two runs of one model that differ in the length of windows and the number of lanes."""
    first, second = (shutil.copytree(trained_run, tmp_path / name) for name in "ab")
    change(first, eval_batch_size=3)
    change(second, seq_len=64)
    return [first, second]


def change(workdir, **knobs):
    config = checksums.read_sealed(workdir / "config.json")
    config["train"] |= knobs
    (workdir / "config.json").write_text(json.dumps(config))


def test_equal_models_differ_by_nothing_in_any_bucket(twins, tmp_path, capsys):
    values = compare_losses(twins, "best", "test", None, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "differences: minus a" in printed
    assert "no intervals: they need 5 documents to resample; the text has 1" in printed
    assert json.loads((tmp_path / "out/eval.json").read_text()) == values
    assert (tmp_path / "out/loss_by_distance.png").stat().st_size > 10_000
    assert [run["workdir"] for run in values["runs"]] == [str(path) for path in twins]
    tokens = values["runs"][0]["tokens"]
    for kind in ("by_position", "by_token", "by_pair"):
        assert sum(bucket["tokens"] for bucket in values[kind]) == tokens
        for bucket in values[kind]:
            of_first, of_second = bucket["runs"]
            assert of_first["difference"] == 0
            assert of_second["difference"] == pytest.approx(0, abs=1e-4)
            assert of_second["loss"] == pytest.approx(of_first["loss"], abs=1e-4)
            assert of_second["interval_of_difference"] is None

    # Its lanes are those of a run by itself, if it has as many of them as the first.
    change(twins[1], eval_batch_size=3)
    alone = evaluate_run(twins[1], "best", "test", None)
    for kind in ("by_position", "by_token", "by_pair"):
        for bucket, of_alone in zip(values[kind], alone[kind], strict=True):
            assert [bucket[x] for x in ("first", "last", "tokens")] == [
                of_alone[x] for x in ("first", "last", "tokens")
            ]
            assert bucket["runs"][1]["loss"] == pytest.approx(of_alone["loss"])


def refusal(twins, tmp_path, text=None):
    with pytest.raises(UserError) as error:
        compare_losses(twins, "best", "test", text, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_other_held_out_tokens_are_refused(twins, tmp_path):
    index = checksums.read_sealed(twins[1] / "data/index.json")
    splits = index["splits"]
    splits["validation"], splits["test"] = splits["test"], splits["validation"]
    (twins[1] / "data/index.json").write_text(json.dumps(index))
    message = refusal(twins, tmp_path)
    assert message.startswith(f"the test splits of {twins[1]} and {twins[0]} differ; use --text")
    assert "a.txt" in refusal(twins, tmp_path, tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("The old king painted the mirror. The old miller did not.")
    values = compare_losses(twins, "best", "test", tmp_path / "a.txt", tmp_path / "out")
    assert values["total"]["tokens"] == 56
    assert values["total"]["runs"][1]["difference"] == pytest.approx(0, abs=1e-4)


def test_another_tokenizer_is_refused(twins, tmp_path):
    path = twins[1] / "tokenizer.json"
    characters = json.loads(path.read_text())["characters"]
    changed = characters[:-2] + characters[-2:][::-1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"characters": changed}))
    data = checksums.read_sealed(twins[1] / "data.json")
    del data["tokenizer"]  # its checksum
    (twins[1] / "data.json").write_text(json.dumps(data))
    assert "have different tokenizers" in refusal(twins, tmp_path)


def test_the_distances_of_a_text_add_up_to_its_loss(trained_run):
    lm = mmrec_jax.load(trained_run)
    text = "The old king painted the mirror. The old miller did not."
    found = lm.loss_by_distance(text)
    expected = lm.evaluate(text)
    for buckets in found:
        assert sum(bucket.tokens for bucket in buckets) == expected.tokens
        mean = sum(bucket.loss * bucket.tokens for bucket in buckets) / expected.tokens
        assert mean == pytest.approx(expected.loss, rel=1e-6)
    *_, never = found.token
    last = repr(found).splitlines()[-1]
    assert last.startswith("  never before")
    assert last.split()[2:4] == [str(never.tokens), f"{never.loss:.4f}"]
