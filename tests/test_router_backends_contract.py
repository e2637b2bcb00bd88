"""The conformance suite against every engine there is."""

from __future__ import annotations

import pytest

from adapters.base import find_base
from router.backends import BACKENDS, make_backend
from router.backends.echo import EchoBackend
from router.backends.embedded.backend import EmbeddedBackend
from router.errors import ConfigInvalid
from tests.backend_contract import USER, BackendContract, Rig
from tests.tiny_model import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class TestEcho(BackendContract):
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


class TestEmbedded(BackendContract):
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


def test_every_backend_can_be_made_by_name(tiny: Tiny) -> None:
    assert [make_backend(name, str(tiny.base)).base_id.endswith("tiny") for name in BACKENDS] == [True] * len(BACKENDS)


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigInvalid, match="echo, embedded"):
        make_backend("tgi", "base")
