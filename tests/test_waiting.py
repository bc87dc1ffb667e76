"""What a command shows on standard error while it is busy."""

import time

import pytest

from mmrec_jax import waiting


@pytest.mark.parametrize(
    ("shown", "patience", "line"), [(True, 0.0, "reading\n"), (True, 60.0, ""), (False, 0.0, "")]
)
def test_what_takes_long_is_said_in_a_line_if_a_command_asked_for_it(
    monkeypatch, capsys, shown, patience, line
):
    monkeypatch.setattr(waiting, "_shown", shown)
    monkeypatch.setattr(waiting, "PATIENCE", patience)
    with waiting.waiting("reading"):
        time.sleep(0.2)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", line)
