"""A cache of its own for a test."""

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MMREC_CACHE_DIR", str(folder))
    return folder
