"""Every error of two rooms has its place in the one table, and says nothing it should not."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest

import adapters.errors
import router.errors
from adapters.errors import BranchlineError, GateRefused, RegistryUnavailable
from router.errors import INTERNAL, TABLE, InvalidRequest, RouterError, error_object, wire_for

SECRET = "/home/someone/sk-live-key"


def classes_of(module: ModuleType) -> list[type[BranchlineError]]:
    found = inspect.getmembers(module, inspect.isclass)
    return [kind for _, kind in found if issubclass(kind, BranchlineError) and kind.__module__ == module.__name__]


EVERY = [*classes_of(adapters.errors), *classes_of(router.errors)]


def instance(kind: type[BranchlineError]) -> BranchlineError:
    needed: dict[str, Any] = {
        name: ["first", "second"]
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in {"self", "message", "hint"}
    }
    return kind("what was found", hint="what to do", **needed)


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind is not BranchlineError])
def test_every_error_class_stands_in_the_table(kind: type[BranchlineError]) -> None:
    assert kind in TABLE


def test_the_table_names_no_class_that_is_gone() -> None:
    assert set(TABLE) <= set(EVERY)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_gives_an_openai_error_object(kind: type[BranchlineError]) -> None:
    document = error_object(instance(kind))
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"]
    assert document["error"]["type"] in {"invalid_request_error", "server_error", "rate_limit_error"}
    assert 400 <= wire_for(instance(kind)).status < 600


@pytest.mark.parametrize("kind", EVERY)
def test_a_server_error_status_and_a_server_error_type_go_together(kind: type[BranchlineError]) -> None:
    wire = wire_for(instance(kind))
    assert (wire.status >= 500) == (wire.type == "server_error")


def test_a_subclass_without_an_entry_takes_its_parents() -> None:
    class Odd(GateRefused):
        pass

    assert wire_for(Odd("m", hint="h", unmet=[])) == TABLE[GateRefused]


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), OSError(2, SECRET), BranchlineError(SECRET)])
def test_an_unknown_exception_shows_nothing_of_itself(error: Exception) -> None:
    assert wire_for(error) == INTERNAL
    assert error_object(error) == {
        "error": {"message": "internal error", "type": "server_error", "param": None, "code": "internal_error"}
    }


def test_the_hint_for_the_operator_is_not_shown_to_the_client() -> None:
    assert SECRET not in str(error_object(RegistryUnavailable("the registry cannot be used", hint=SECRET)))


def test_code_and_param_of_an_error_stand_over_the_table() -> None:
    document = error_object(InvalidRequest("no", param="temperature", code="unsupported_parameter"))["error"]
    assert (document["param"], document["code"]) == ("temperature", "unsupported_parameter")
    assert error_object(RouterError("no"))["error"]["code"] == TABLE[RouterError].code
