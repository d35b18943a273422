"""What the tests of objectives share."""

from __future__ import annotations

import pytest

from tests.objectives.gaussian import MemoisedDraws


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> MemoisedDraws:
    return MemoisedDraws(monkeypatch)
