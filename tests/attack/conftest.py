from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Tally(Protocol):
    """Notes one attempt, for the figures that are printed at the end."""

    def __call__(self, attack: str, **figures: Any) -> None: ...


@pytest.fixture(scope="session")
def killing() -> Iterator[Worker]:
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("forks and kills by a signal")
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    return lambda attack, **figures: record_property(f"attack: {attack}", figures)
