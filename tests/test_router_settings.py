"""Flags and environment become one checked value, with every problem named."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.home import Home
from router.errors import ConfigInvalid
from router.settings import Settings, read_settings

KEY = "k-0123456789abcdef"


def settings(environment: dict[str, str], *, port: int = 8000, max_body_mb: int = 8) -> Settings:
    home = Home.at(Path("home"))
    return read_settings(
        home, environment, backend="echo", base="tiny", host="127.0.0.1", port=port, max_body_mb=max_body_mb
    )


def test_the_key_comes_from_the_environment_and_is_in_no_repr() -> None:
    found = settings({"BRANCHLINE_API_KEY": KEY})
    assert found.api_key == KEY
    assert KEY not in repr(found) + str(found)


def test_without_the_variable_there_is_no_key() -> None:
    assert settings({}).api_key is None


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        settings({"BRANCHLINE_API_KEY": " "}, port=65536, max_body_mb=0)
    for word in ("port is 65536", "max-body-mb is 0", "BRANCHLINE_API_KEY is set but empty"):
        assert word in refused.value.message


def test_the_largest_body_is_counted_in_bytes() -> None:
    assert settings({}, max_body_mb=3).max_body_bytes == 3 * 1024 * 1024
