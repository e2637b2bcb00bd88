"""Who may ask: the key, the bind, the Host and the Origin."""

from __future__ import annotations

import hmac
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.keys import ROLES, ApiKey, KeyLimits, Role, new_key_id, new_secret, secret_digest
from router.auth import MIN_KEY_CHARACTERS, Gatekeeper, is_loopback
from router.errors import ConfigInvalid, Forbidden, Unauthorized
from router.keys.principal import ANONYMOUS, OWNER, KeyRing, Principal

KEY = "k-0123456789abcdef"
KEY_ID = new_key_id()
SECRET = new_secret(KEY_ID)
OPEN = Gatekeeper.for_bind("127.0.0.1", None)
KEYED = Gatekeeper.for_bind("127.0.0.1", KEY)


def api_key(
    role: Role = "inference",
    *,
    routes: frozenset[str] | None = None,
    limits: KeyLimits | None = None,
    revoked_at: str | None = None,
) -> ApiKey:
    """The key that `SECRET` is of."""
    digest = secret_digest(SECRET)
    return ApiKey(KEY_ID, "app", role, routes, limits or KeyLimits(), "then", revoked_at, digest)


def holding(keeper: Gatekeeper, *keys: ApiKey) -> Gatekeeper:
    """`keeper` with these keys in its registry."""
    ring = KeyRing().updated(keys)
    return keeper.following(lambda: ring)


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


def test_the_servers_own_key_is_an_operators_and_a_key_of_the_registry_what_it_was_made_as() -> None:
    assert KEYED.principal({"authorization": f"Bearer {KEY}"}) is OWNER
    assert OWNER.may("operator")
    assert not OWNER.may("admin")
    made = api_key("admin", routes=frozenset({"sql"}), limits=KeyLimits(5))
    for keeper in (OPEN, KEYED):
        found = holding(keeper, made).principal({"authorization": f"Bearer {SECRET}"})
        assert found == Principal(KEY_ID, "app", "admin", frozenset({"sql"}), KeyLimits(5))


@pytest.mark.parametrize("own", [None, KEY])
@pytest.mark.parametrize(
    "token",
    ["", SECRET[:-1], f"{SECRET}x", f"bl-{KEY_ID}-", f"bl-{KEY_ID}", f"bl-000000000000-{SECRET[16:]}", "bl--", "x"],
    ids=["empty", "cut", "longer", "no secret", "id alone", "other id", "no id", "other form"],  # not random: xdist
)
def test_a_secret_that_is_not_whole_is_unauthorized(own: str | None, token: str) -> None:
    keeper = holding(Gatekeeper.for_bind("127.0.0.1", own), api_key())
    with pytest.raises(Unauthorized):
        keeper.principal({"authorization": f"Bearer {token}"})


def test_a_key_of_the_registry_is_compared_in_constant_time_once_it_was_found_by_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[int, int]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keeper = holding(OPEN, api_key())
    keeper.principal({"authorization": f"Bearer {SECRET}"})
    with pytest.raises(Unauthorized):
        keeper.principal({"authorization": f"Bearer bl-{KEY_ID}-x"})
    assert compared == [(32, 32), (32, 32)]


def test_a_revoked_key_lets_nobody_in_and_opens_no_server() -> None:
    keeper = holding(OPEN, api_key(revoked_at="now"))
    for headers in ({}, {"authorization": f"Bearer {SECRET}"}):
        with pytest.raises(Unauthorized):
            keeper.principal(headers)


def test_keys_are_asked_for_anew_at_each_request() -> None:
    rings = [KeyRing(), KeyRing().updated([api_key()])]
    keeper = OPEN.following(lambda: rings[0])
    assert keeper.principal({}) is ANONYMOUS
    rings.pop(0)
    with pytest.raises(Unauthorized):
        keeper.principal({})
    assert keeper.principal({"authorization": f"Bearer {SECRET}"}).name == "app"


def test_a_ring_follows_what_changed_and_keeps_the_rest() -> None:
    ring = KeyRing().updated([api_key(), replace(api_key(), id="other", name="other")])
    assert (ring.asks, ring.in_force) == (True, 2)
    changed = ring.updated([api_key("operator")])
    found = changed.find(SECRET, bytes.fromhex(secret_digest(SECRET)))
    assert (changed.in_force, found and found.role) == (2, "operator")
    revoked = changed.updated([api_key(revoked_at="now")])
    assert (revoked.in_force, revoked.find(SECRET, bytes.fromhex(secret_digest(SECRET)))) == (1, None)


@pytest.mark.parametrize(("role", "may"), [("inference", "i"), ("operator", "io"), ("admin", "ioa")])
def test_each_role_may_do_what_those_below_it_may(role: Role, may: str) -> None:
    principal = Principal("id", "app", role, None, KeyLimits())
    assert [one for one in ROLES if principal.may(one)] == [one for one in ROLES if one[0] in may]


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


def test_a_key_in_the_registry_is_enough_to_listen_beyond_loopback_a_revoked_one_is_not() -> None:
    assert not Gatekeeper.for_bind("10.0.0.7", None, KeyRing().updated([api_key()])).loopback
    with pytest.raises(ConfigInvalid, match="without a key"):
        Gatekeeper.for_bind("10.0.0.7", None, KeyRing().updated([api_key(revoked_at="now")]))


def test_a_short_key_is_refused_with_the_length_it_needs() -> None:
    with pytest.raises(ConfigInvalid, match=f"at least {MIN_KEY_CHARACTERS}"):
        Gatekeeper.for_bind("127.0.0.1", "a" * (MIN_KEY_CHARACTERS - 1))


@pytest.mark.parametrize("key", ["0123456789abcdef ", "0123456789abcdef\n", "0123456789 abcdef", "0123456789abcdeé"])
def test_a_key_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ConfigInvalid, match="no header can carry"):
        Gatekeeper.for_bind("127.0.0.1", key)


def test_the_key_is_in_no_repr() -> None:
    for shown in (repr(KEYED), repr(holding(KEYED, api_key())), repr(KeyRing().updated([api_key()]))):
        assert not [one for one in (KEY, SECRET, secret_digest(SECRET), repr(KEYED.key_digest)) if one in shown]


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
    for keeper in (OPEN, KEYED, holding(OPEN, api_key())):
        with suppress(Forbidden):
            keeper.require_own_site(headers)
        with suppress(Unauthorized):
            keeper.principal(headers)


def test_a_name_is_not_loopback_because_it_begins_like_one() -> None:
    assert not any(is_loopback(name) for name in ("127.0.0.1.example", "localhost.example", "1270.0.1", "example"))
