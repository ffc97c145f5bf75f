"""Fixtures of the self-check's tests."""

import pytest

from vtfast.models import self_check


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    """Every test is a process that has checked nothing yet."""
    monkeypatch.setattr(self_check, "_passed", set())
    monkeypatch.delenv(self_check.VARIABLE, raising=False)


@pytest.fixture
def untested(monkeypatch):
    """The release installed counts as one vtfast was never tested with."""
    monkeypatch.setattr(self_check, "TESTED", ("1.2.3", "4.5.6"))
