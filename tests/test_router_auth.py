"""Who may ask: the key, the bind, the Host and the Origin."""

from __future__ import annotations

import hmac
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.auth import MIN_KEY_CHARACTERS, Gatekeeper, is_loopback
from router.errors import ConfigInvalid, Forbidden, Unauthorized

KEY = "k-0123456789abcdef"
OPEN = Gatekeeper.for_bind("127.0.0.1", None)
KEYED = Gatekeeper.for_bind("127.0.0.1", KEY)


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_the_key_is_let_in_whatever_the_case_of_the_scheme(header: str) -> None:
    KEYED.principal({"authorization": header})


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer é"]
)
def test_a_missing_or_wrong_key_or_another_scheme_is_unauthorized(header: str | None) -> None:
    with pytest.raises(Unauthorized) as refused:
        KEYED.principal({} if header is None else {"authorization": header})
    assert KEY not in refused.value.message


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    KEYED.principal({"authorization": f"Bearer {KEY}"})
    with pytest.raises(Unauthorized):
        KEYED.principal({"authorization": "Bearer x"})
    assert compared == [(32, 32), (32, 32)]  # digests, so that not even the length tells


def test_without_a_key_everybody_on_this_machine_is_let_in() -> None:
    OPEN.principal({})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.com", ""])  # noqa: S104
def test_a_bind_beyond_loopback_without_a_key_is_refused(host: str) -> None:
    with pytest.raises(ConfigInvalid, match="without a key"):
        Gatekeeper.for_bind(host, None)
    assert not Gatekeeper.for_bind(host, KEY).loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert Gatekeeper.for_bind(host, None).loopback


def test_a_short_key_is_refused_with_the_length_it_needs() -> None:
    with pytest.raises(ConfigInvalid, match=f"at least {MIN_KEY_CHARACTERS}"):
        Gatekeeper.for_bind("127.0.0.1", "a" * (MIN_KEY_CHARACTERS - 1))


@pytest.mark.parametrize("key", ["0123456789abcdef ", "0123456789abcdef\n", "0123456789 abcdef", "0123456789abcdeé"])
def test_a_key_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ConfigInvalid, match="no header can carry"):
        Gatekeeper.for_bind("127.0.0.1", key)


def test_the_key_is_in_no_repr() -> None:
    assert KEY not in repr(KEYED)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "[::1]", "127.0.0.2"])
def test_a_host_of_this_machine_is_let_in(host: str) -> None:
    OPEN.require_own_site({"host": host})


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.7", "["],
)
def test_a_foreign_host_on_a_loopback_bind_is_forbidden(host: str) -> None:
    with pytest.raises(Forbidden) as refused:
        OPEN.require_own_site({"host": host})
    assert refused.value.code == "foreign_host"


def test_any_host_is_let_in_beyond_loopback_where_the_key_guards() -> None:
    Gatekeeper.for_bind("10.0.0.7", KEY).require_own_site({"host": "models.example"})


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://evil.example:8000", "null", "", "http://[::1", "file://"]
)
def test_a_foreign_or_malformed_origin_is_forbidden(origin: str) -> None:
    with pytest.raises(Forbidden) as refused:
        OPEN.require_own_site({"host": "127.0.0.1:8000", "origin": origin})
    assert refused.value.code == "foreign_origin"


def test_a_page_of_this_server_is_let_in() -> None:
    OPEN.require_own_site({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"})


@given(st.dictionaries(st.sampled_from(["host", "origin", "authorization"]), st.text(max_size=40)))
def test_arbitrary_headers_are_let_in_or_refused_and_nothing_else(headers: dict[str, str]) -> None:
    for keeper in (OPEN, KEYED):
        with suppress(Forbidden):
            keeper.require_own_site(headers)
        with suppress(Unauthorized):
            keeper.principal(headers)


def test_a_name_is_not_loopback_because_it_begins_like_one() -> None:
    assert not any(is_loopback(name) for name in ("127.0.0.1.example", "localhost.example", "1270.0.1", "example"))
