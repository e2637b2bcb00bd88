"""`branchline engine`: what a running gateway says of its engines; take one out of the traffic and back in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import click

from adapters.errors import BranchlineError
from adapters.output import json_option, print_json, print_table

from ..settings import API_KEY

ENGINES = "/admin/v1/engines"
SECONDS = 10.0
_COLUMNS = ("name", "state", "outstanding", "resident", "restarts", "problem")


@click.group()
def engine() -> None:
    """See the engines of a running gateway; drain and resume them."""


def gateway_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--gateway",
        default="http://127.0.0.1:8000",
        show_default=True,
        help="The gateway; its key is BRANCHLINE_API_KEY.",
    )(command)


@engine.command(name="list")
@gateway_option
@json_option
def list_engines(gateway: str, as_json: bool) -> None:
    """List the engines behind the gateway."""
    _show(_ask(gateway, "GET"), as_json)


@engine.command()
@click.argument("name")
@gateway_option
@json_option
def drain(name: str, gateway: str, as_json: bool) -> None:
    """Give the engine NAME no further requests; those running finish."""
    _show(_ask(gateway, "POST", name, "drain"), as_json)


@engine.command()
@click.argument("name")
@gateway_option
@json_option
def resume(name: str, gateway: str, as_json: bool) -> None:
    """Give the drained engine NAME requests again."""
    _show(_ask(gateway, "POST", name, "resume"), as_json)


def _show(engines: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(engines)
    else:
        print_table(_COLUMNS, [tuple(one.get(column) for column in _COLUMNS) for one in engines])


def _ask(gateway: str, method: str, *words: str) -> list[dict[str, Any]]:
    """The engines as the gateway tells them; raises `BranchlineError` with what is wrong and what to do."""
    if not gateway.startswith(("http://", "https://")):
        raise BranchlineError(f"--gateway is {gateway!r:.100}, expected a URL like http://127.0.0.1:8000")
    address = "/".join([gateway.rstrip("/") + ENGINES, *(quote(word, safe="") for word in words)])
    key = os.environ.get(API_KEY)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with urlopen(Request(address, method=method, headers=headers), timeout=SECONDS) as answer:  # noqa: S310 - http only
            engines: list[dict[str, Any]] = json.load(answer)["engines"]
            return engines
    except HTTPError as error:
        with error:
            raise _refusal(gateway, error) from None
    except (URLError, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise BranchlineError(
            f"no gateway answers at {gateway}: {reason}",
            hint="start one with `branchline serve`, or name it: --gateway",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise BranchlineError(f"{gateway} is no Branchline gateway: its answer cannot be read") from None


def _refusal(gateway: str, error: HTTPError) -> BranchlineError:
    if error.code == 401:
        return BranchlineError(f"{gateway} asks for another key", hint=f"set {API_KEY} to the gateway's")
    try:
        message = str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return BranchlineError(f"{gateway} is no Branchline gateway: it answers {error.code}")
    return BranchlineError(message)
