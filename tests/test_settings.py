"""Settings: what they take from Python and from the environment, and what they print."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import scfm
from scfm._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

HELD = Settings.model_fields


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    scfm.settings.reset()


@pytest.mark.parametrize("name", HELD)
def test_an_empty_variable_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Settings()
    monkeypatch.setenv(f"SCFM_{name.upper()}", "")
    assert Settings() == plain or name in ("offline", "fsync")  # which the tests set


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"VERBOSITY": "INFO", "CACHE_DIR": "~/a", "THREADS": " 3 ", "OFFLINE": "yes"}.items():
        monkeypatch.setenv(f"SCFM_{name}", text)
    found = Settings()
    assert (found.verbosity, found.cache_dir, found.threads, found.offline) == ("info", Path.home() / "a", 3, True)


@pytest.mark.parametrize(
    ("name", "text", "accepted"),
    [
        ("THREADS", "0", "it should be greater than or equal to 1"),
        ("BLOCK_ROWS", "many", "it should be a valid integer"),
        ("VERBOSITY", "loud", "it should be 'error', 'warning', 'info' or 'debug'"),
        ("PROGRESS", "perhaps", "it should be 1, true, yes or on, or 0, false, no or off"),
        ("FSYNC", "maybe", "it should be 1, true, yes or on, or 0, false, no or off"),
        ("CACHE_DIR", __file__, "it should be a folder, or a place for one, and is a file"),
        ("DEVICE", "foo", "it should be 'cpu', 'cuda', 'cuda:1' or 'mps'"),
        ("HUB_ENDPOINT", "foo", "it should begin with https:// and a host"),
        ("S3_ENDPOINT", "https://", "it should begin with https:// and a host"),
    ],
)
def test_a_wrong_variable_is_named(name: str, text: str, accepted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"SCFM_{name}", text)
    with pytest.raises(ValueError, match=f"^SCFM_{name}='{text}' cannot be used: {accepted}") as caught:
        Settings()
    assert "\n" not in str(caught.value)


def test_the_variable_of_the_hub_is_named_and_no_login_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "ftp://me:pa55word@mirror")
    with pytest.raises(ValueError, match=r"^HF_ENDPOINT='ftp://\*\*\*@mirror' cannot be used: it should begin"):
        Settings()
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert Settings().hub_endpoint == "https://huggingface.co"


@pytest.mark.parametrize(
    ("value", "level"),
    [(0, "error"), (1, "warning"), (2, "info"), (3, "info"), (4, "debug"), ("hint", "info"), ("Debug", "debug")],
)
def test_verbosity_as_in_scanpy(value: Any, level: str) -> None:
    scfm.settings.verbosity = value
    assert scfm.settings.verbosity == level
    assert logging.getLogger("scfm").level == getattr(logging, level.upper())


def test_typos() -> None:
    for value in (5, -1, "loud", None):
        with pytest.raises(ValueError, match=r"^scfm.settings.verbosity=.* cannot be used: it should be 'error'"):
            scfm.settings.verbosity = value
    with pytest.raises(AttributeError, match="There is no setting 'thread'; there are device, threads, block_rows"):
        scfm.settings.thread = 3


@pytest.mark.parametrize("configured", [True, False])
def test_lines_are_printed_once(
    configured: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    users = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [users] if configured else [])
    for _ in range(2):
        scfm.settings.verbosity = "info"
    logging.getLogger("scfm.model").info("a line")
    users.flush()
    assert capsys.readouterr().err == "a line\n"
