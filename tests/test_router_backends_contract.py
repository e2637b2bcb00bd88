"""The conformance suite against every engine there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.base import find_base
from adapters.home import Home
from router.backends import BACKENDS, Backend, make_backend
from router.backends.echo import EchoBackend
from router.backends.embedded.backend import EmbeddedBackend
from router.errors import ConfigInvalid
from router.settings import EngineSettings
from tests.backend_contract import USER, OwnDecodingContract, Rig
from tests.tiny_model import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class TestEcho(OwnDecodingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, tiny: Tiny) -> Rig:
        many_words = {"role": "user", "content": "word " * 2000}
        return Rig(
            make=lambda: EchoBackend("tiny", context_length=3000),
            versions=tiny.versions,
            broken=tiny.truncated,
            long_body={"messages": [many_words]},
            too_long="word " * 3000,
        )


class TestEmbedded(OwnDecodingContract):
    @pytest.fixture(scope="class")
    @classmethod
    def rig(cls, tiny: Tiny) -> Rig:
        base = find_base(str(tiny.base))
        return Rig(
            make=lambda: EmbeddedBackend(base, threads=1),
            versions=tiny.versions,
            broken=tiny.truncated,
            long_body={"messages": [USER], "temperature": 0},
            too_long="word " * 20000,
        )


def made(name: str, base: Path, home: Path) -> Backend:
    return make_backend(EngineSettings(name, str(base)), Home.at(home), say=lambda _: None)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_can_be_made_by_name(name: str, tiny: Tiny, tmp_path: Path) -> None:
    assert made(name, tiny.base, tmp_path).base_id == tiny.base.name


def test_an_unknown_backend_is_answered_with_the_known_ones(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="echo, embedded"):
        made("tgi", tiny.base, tmp_path)
