"""Keys as an operator meets them: the command line beside a served gateway that listens beyond this machine."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from adapters.cli_keys import key as key_group
from router.cli import serve
from router.errors import ConfigInvalid
from tests.gateway_parts import DEADLINE, make_stock
from tests.gateway_process import branchline, serving

ECHO = ("--backend", "echo", "--base", "tiny", "--host", "0.0.0.0")  # noqa: S104 - it is what is tested
IN_FORCE = "in force on 1 of 1 gateways"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=1).home


def test_a_key_opens_a_gateway_beyond_loopback_until_the_command_line_says_that_it_is_revoked(home: Path) -> None:

    def key(*words: str) -> str:
        return CliRunner().invoke(key_group, [*words, "--home", str(home)], catch_exceptions=False).stdout.strip()

    with pytest.raises(ConfigInvalid, match=r"without a key .*branchline key create"):
        CliRunner(env=dict.fromkeys(["BRANCHLINE_API_KEY"])).invoke(
            serve, [*ECHO, "--port", "0", "--home", str(home)], catch_exceptions=False
        )
    secret = key("create", "app", "--role", "inference")
    with serving(home, *ECHO) as gateway, httpx.Client(timeout=DEADLINE) as client:
        gateway.wait_for("serving on .* with a key")
        url = gateway.url.replace("0.0.0.0", "127.0.0.1") + "/v1/models"  # noqa: S104

        def status(key: str) -> int:
            return client.get(url, headers={"authorization": f"Bearer {key}"}).status_code

        assert (client.get(url).status_code, status(secret)) == (401, 200)
        second = key("create", "shop", "--role", "inference")
        assert status(second) == 200  # `create` came back when it was known
        assert IN_FORCE in branchline("key", "revoke", "app", "--why", "leaked", home=home)
        assert (status(secret), status(second)) == (401, 200)
        assert IN_FORCE in key("revoke", "shop")
        assert (client.get(url).status_code, status(second)) == (401, 401)
    assert not [one for one in (secret, second) if one in gateway.output]
