"""Flags and environment become one checked value, with every problem named."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from adapters.home import Home
from router.errors import ConfigInvalid
from router.settings import EncoderSettings, Settings, read_settings

KEY = "k-0123456789abcdef"


def settings(
    environment: dict[str, str], *, port: int = 8000, max_body_mb: int = 8, engine: dict[str, object] | None = None
) -> Settings:
    home = Home.at(Path("home"))
    chosen = {"backend": "echo", "base": "tiny", **(engine or {})}
    return read_settings(home, environment, host="127.0.0.1", port=port, max_body_mb=max_body_mb, engine=chosen)


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


@pytest.mark.parametrize("key", ["secret\n", "two words", "schlüssel"])
def test_an_engines_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigInvalid, match="BRANCHLINE_ENGINE_API_KEY holds") as refused:
        settings({"BRANCHLINE_ENGINE_API_KEY": key})
    assert key not in refused.value.message


def test_the_largest_body_is_counted_in_bytes() -> None:
    assert settings({}, max_body_mb=3).max_body_bytes == 3 * 1024 * 1024


def test_the_engines_key_and_python_come_from_the_environment() -> None:
    found = settings({"BRANCHLINE_ENGINE_API_KEY": KEY, "BRANCHLINE_VLLM_PYTHON": "/opt/vllm/bin/python"}).engine
    assert (found.key, found.python) == (KEY, "/opt/vllm/bin/python")
    assert KEY not in repr(found)


def test_a_flag_wins_over_the_environment() -> None:
    found = settings({"BRANCHLINE_VLLM_PYTHON": "/opt/a"}, engine={"backend": "vllm", "python": "/opt/b"}).engine
    assert found.python == "/opt/b"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"urls": ("http://one:1",)}, "--engine needs --backend vllm, found echo"),
        ({"backend": "vllm", "store": "/data"}, "--engine-store needs --engine"),
        ({"backend": "vllm", "urls": ("http://one:1", "http://one:1/")}, "names an engine twice"),
        ({"backend": "vllm", "urls": ("ftp://one",)}, "expected http://HOST:PORT"),
        ({"backend": "vllm", "urls": ("http://one:99999",)}, "expected http://HOST:PORT"),
        ({"backend": "vllm", "urls": ("http://user:secret@one:1",)}, "may not carry a key"),
        ({"backend": "vllm", "urls": ("http://one:1/v1",)}, "expected no path"),
        ({"backend": "vllm", "urls": ("http://one:1",), "max_loras": 4}, "--max-loras: only for an engine"),
        ({"backend": "embedded", "dtype": "float16", "arguments": ("--seed", "1")}, "flags after --, --dtype: only"),
    ],
)
def test_engine_flags_that_are_wrong_or_would_do_nothing_are_refused(engine: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        settings({}, engine=engine)


def test_a_key_in_an_engines_url_is_not_repeated() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        settings({}, engine={"backend": "vllm", "urls": ("http://user:secret@one:1",)})
    assert "secret" not in str(refused.value)


def test_an_encoder_is_read_with_its_precision_and_none_where_none_is_named() -> None:
    home, engine = Home.at(Path("home")), {"backend": "echo", "base": "tiny"}
    read = partial(read_settings, home, {}, host="127.0.0.1", port=8000, engine=engine)
    assert read().encoder is None
    assert read(encoder="some/model", encoder_precision="fp32").encoder == EncoderSettings("some/model", "fp32")
    with pytest.raises(ConfigInvalid, match="--encoder is empty"):
        read(encoder=" ")
