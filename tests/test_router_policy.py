"""decide(): every case of the table, and what holds for all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adapters.policy import OnDisabled
from router.errors import Forbidden, ModelNotFound, RouteDisabled
from router.policy import NotScored, RouteInForce, ServableVersion, Snapshot, decide
from router.types import Decision, Judged, Reason, Scores

BASE = "pocket"
REFUSALS = (Forbidden, ModelNotFound, RouteDisabled)
CLASSIFIER, EXEMPLARS = "c" * 64, "e" * 64
SURE = Judged(Scores("sql", 0.93, 2.0, 1.0), CLASSIFIER, EXEMPLARS)
UNSURE = Judged(Scores("sql", 0.41, 0.5, 1.0), CLASSIFIER, EXEMPLARS)
UNREAD = NotScored("not_text")


def version(number: int, *, released: bool = True, retired: bool = False, route: str = "sql") -> ServableVersion:
    return ServableVersion(number, f"{route}@{number}.{number:016x}", released, retired)


def sql(**changes: object) -> RouteInForce:
    """An enabled route with version 2 live, 1 before it, 3 never live and 4 retired."""
    versions = {1: version(1), 2: version(2), 3: version(3, released=False), 4: version(4, retired=True)}
    route = RouteInForce("sql", True, "base", wanted=2, in_force=2, serial=9, versions=versions)
    return replace(route, **changes)  # type: ignore[arg-type]  # fields of RouteInForce, by name


def snapshot(*routes: RouteInForce) -> Snapshot:
    return Snapshot(9, BASE, {route.name: route for route in routes})


def choose(model: str, route: RouteInForce, scores: Judged | NotScored = SURE, *, unreleased: bool = False) -> Decision:
    return decide(model, scores, snapshot(route), allow_unreleased=unreleased)


DISABLED = {"enabled": False, "wanted": None, "in_force": None}


@pytest.mark.parametrize(
    ("scores", "changes", "engine_name", "stage", "reason", "route"),
    [
        (SURE, {}, version(2).engine_name, "live", "classified", "sql"),
        (UNSURE, {}, BASE, "base", "abstained", None),
        (Judged(Scores("base", 0.99, 2.0, 1.0), CLASSIFIER, EXEMPLARS), {}, BASE, "base", "abstained", None),
        (Judged(Scores("gone", 0.99, 2.0, 1.0), CLASSIFIER, EXEMPLARS), {}, BASE, "base", "no_live_version", None),
        (SURE, {"wanted": None, "in_force": None}, BASE, "base", "no_live_version", "sql"),
        (SURE, {"in_force": None}, BASE, "base", "adapter_unavailable", "sql"),
        (SURE, {"in_force": 1}, version(1).engine_name, "live", "classified", "sql"),
        (SURE, DISABLED, BASE, "base", "route_disabled", "sql"),
        (SURE, {**DISABLED, "on_disabled": "error"}, BASE, "base", "route_disabled", "sql"),
        (NotScored("not_text"), {}, BASE, "base", "not_text", None),
        (NotScored("no_classifier"), {}, BASE, "base", "no_classifier", None),
    ],
)
def test_auto_goes_where_the_classifier_and_what_is_in_force_say(
    scores: Judged | NotScored,
    changes: dict[str, object],
    engine_name: str,
    stage: str,
    reason: Reason,
    route: str | None,
) -> None:
    found = choose("auto", sql(**changes), scores)
    assert (found.engine_name, found.stage, found.reason, found.route) == (engine_name, stage, reason, route)


@pytest.mark.parametrize(
    ("changes", "engine_name", "stage", "reason"),
    [
        ({}, version(2).engine_name, "live", "pinned"),
        ({"in_force": 1}, version(1).engine_name, "live", "pinned"),
        ({"in_force": None}, BASE, "base", "adapter_unavailable"),
        (DISABLED, BASE, "base", "route_disabled"),
    ],
)
def test_a_route_by_name_answers_with_what_is_in_force_or_says_why_the_base_does(
    changes: dict[str, object], engine_name: str, stage: str, reason: Reason
) -> None:
    found = choose("sql", sql(**changes), UNREAD)
    assert (found.engine_name, found.stage, found.reason, found.route) == (engine_name, stage, reason, "sql")


def test_a_disabled_route_by_name_is_refused_where_its_policy_says_error() -> None:
    with pytest.raises(RouteDisabled):
        choose("sql", sql(**DISABLED, on_disabled="error"))


def test_a_route_without_a_live_version_is_no_model() -> None:
    with pytest.raises(ModelNotFound):
        choose("sql", sql(wanted=None, in_force=None))


@pytest.mark.parametrize("model", ["sql@1", version(1).engine_name])
def test_a_version_by_number_or_engine_name_answers_itself(model: str) -> None:
    found = choose(model, sql(), UNREAD)
    assert (found.engine_name, found.stage, found.reason, found.version) == (
        version(1).engine_name,
        "pinned",
        "pinned",
        1,
    )


@pytest.mark.parametrize("model", ["sql@1", "sql@2", version(2).engine_name])
@pytest.mark.parametrize("on_disabled", ["base", "error"])
def test_no_version_of_a_disabled_route_answers(model: str, on_disabled: OnDisabled) -> None:
    with pytest.raises(RouteDisabled):
        choose(model, sql(**DISABLED, on_disabled=on_disabled), unreleased=True)


def test_a_version_never_live_needs_permission() -> None:
    with pytest.raises(Forbidden) as refused:
        choose("sql@3", sql())
    assert refused.value.code == "not_permitted"
    assert choose("sql@3", sql(), unreleased=True).version == 3


@pytest.mark.parametrize("changes", [{}, {"in_force": None}, {"wanted": None, "in_force": None}, DISABLED])
def test_the_base_answers_auto_where_the_route_is_not_permitted_whatever_is_in_force(
    changes: dict[str, object],
) -> None:
    found = decide("auto", SURE, snapshot(sql(**changes)), permitted=frozenset({"regex"}))
    assert (found.engine_name, found.stage, found.reason, found.route) == (BASE, "base", "not_permitted", "sql")
    assert found.confidence == SURE.scores.confidence


def test_a_key_without_any_route_still_has_the_base() -> None:
    for model in (BASE, "auto"):
        assert decide(model, UNSURE, snapshot(sql()), permitted=frozenset()).engine_name == BASE


@pytest.mark.parametrize("model", ["sql", "sql@1", "sql@3", "sql@9", version(2).engine_name, "gone", "gone@1"])
@pytest.mark.parametrize("changes", [{}, DISABLED])
def test_a_route_that_is_not_permitted_is_refused_as_one_that_is_not_there(
    model: str, changes: dict[str, object]
) -> None:
    with pytest.raises(Forbidden) as refused:
        decide(model, UNREAD, snapshot(sql(**changes)), allow_unreleased=True, permitted=frozenset({"regex"}))
    assert (refused.value.code, refused.value.param) == ("not_permitted", "model")


@pytest.mark.parametrize("allowed", [True, False])
def test_a_retired_version_is_no_model(allowed: bool) -> None:
    with pytest.raises(ModelNotFound):
        choose("sql@4", sql(), unreleased=allowed)


@pytest.mark.parametrize(
    "model",
    [
        "sql@1.ffffffffffffffff",
        "sql@9",
        "sql@0",
        "sql@01",
        "sql@",
        "gone",
        "gone@1",
        "SQL",
        "sql ",
        "sql@1.1",
        "",
        "Auto",
    ],
)
def test_what_names_nothing_is_no_model(model: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        choose(model, sql(), unreleased=True)
    assert refused.value.param == "model"


def test_the_base_answers_by_its_id_whatever_the_classifier_says() -> None:
    found = choose(BASE, sql())
    assert (found.engine_name, found.reason, found.route, found.confidence) == (BASE, "base_requested", None, None)


def test_a_classified_decision_names_what_it_was_made_by_also_where_the_base_answers() -> None:
    for judged, changes in ((SURE, {}), (UNSURE, {}), (SURE, {"in_force": None})):
        found = choose("auto", sql(**changes), judged)
        assert found.confidence == judged.scores.confidence
        assert (found.classifier_digest, found.exemplars_digest, found.exemplar) == (CLASSIFIER, EXEMPLARS, None)
    assert (choose("sql", sql()).classifier_digest, choose("sql", sql()).exemplars_digest) == (None, None)


def test_a_decision_of_memory_is_classified_and_names_the_exemplar() -> None:
    remembered = Judged(Scores("sql", 0.9, 0.9, 0.8, exemplar="f" * 64), None, EXEMPLARS)
    found = choose("auto", sql(), remembered)
    assert (found.reason, found.route, found.exemplar, found.classifier_digest) == ("classified", "sql", "f" * 64, None)


def test_the_base_answers_what_an_exemplar_gives_to_the_base() -> None:
    remembered = Judged(Scores("base", 0.9, 0.9, 0.8, exemplar="f" * 64), CLASSIFIER, EXEMPLARS)
    found = choose("auto", sql(), remembered)
    assert (found.engine_name, found.reason, found.exemplar) == (BASE, "abstained", "f" * 64)


@pytest.mark.parametrize(("score", "threshold"), [(math.nan, 1.0), (2.0, math.nan), (math.nan, math.nan)])
def test_the_base_answers_where_a_score_or_its_threshold_is_no_number(score: float, threshold: float) -> None:
    found = choose("auto", sql(), Judged(Scores("sql", 0.9, score, threshold), CLASSIFIER, EXEMPLARS))
    assert (found.engine_name, found.reason) == (BASE, "abstained")


# -- what holds for all -------------------------------------------------------------------------------------------


@st.composite
def routes(draw: st.DrawFn, name: str) -> RouteInForce:
    numbers = range(1, draw(st.integers(1, 5)))
    released = {number: draw(st.booleans()) for number in numbers}
    retired = {number: draw(st.booleans()) for number in numbers}
    servable = [number for number in numbers if released[number] and not retired[number]]
    enabled = draw(st.booleans())
    wanted = draw(st.sampled_from([None, *servable])) if enabled else None
    in_force = draw(st.sampled_from([None, *servable])) if wanted else None
    versions = {n: version(n, released=released[n], retired=retired[n], route=name) for n in numbers}
    on_disabled = draw(st.sampled_from(get_args(OnDisabled)))
    return RouteInForce(name, enabled, on_disabled, wanted, in_force, draw(st.integers(0, 99)), versions)


SNAPSHOTS = st.tuples(routes("sql"), routes("regex")).map(lambda both: snapshot(*both))
NAMES = st.sampled_from(["sql", "regex", "gone"])
SCORES = st.builds(Scores, NAMES | st.just("base"), st.floats(0, 1), st.floats(-5, 5), st.floats(-5, 5))
JUDGED = st.builds(Judged, SCORES, st.just(CLASSIFIER), st.just(EXEMPLARS))
UNSCORED = st.builds(NotScored, st.sampled_from(["not_text", "no_classifier"]))
NAMED = st.tuples(NAMES, st.integers(1, 5)).map(lambda ref: f"{ref[0]}@{ref[1]}") | NAMES
MODELS = NAMED | st.tuples(NAMES, st.integers(1, 5)).map(lambda ref: version(ref[1], route=ref[0]).engine_name)


@given(SNAPSHOTS, JUDGED | UNSCORED, st.booleans())
def test_auto_always_finds_an_answer(view: Snapshot, scores: Judged | NotScored, allowed: bool) -> None:
    found = decide("auto", scores, view, allow_unreleased=allowed)
    answering = {route.versions[route.in_force].engine_name for route in view.routes.values() if route.in_force}
    assert found.engine_name in answering | {BASE}
    assert (found.engine_name == BASE) == (found.stage == "base") == (found.version is None)


@given(SNAPSHOTS, MODELS, JUDGED | UNSCORED, st.booleans())
def test_a_named_adapter_falls_to_the_base_only_where_disabled_or_on_its_way(
    view: Snapshot, model: str, scores: Judged | NotScored, allowed: bool
) -> None:
    try:
        found = decide(model, scores, view, allow_unreleased=allowed)
    except REFUSALS:
        return
    route = view.routes[model.partition("@")[0]]
    if found.stage == "base":
        assert "@" not in model
        if route.enabled:
            assert (found.reason, route.in_force) == ("adapter_unavailable", None)
        else:
            assert (found.reason, route.on_disabled) == ("route_disabled", "base")
    else:
        assert found.route == route.name
        assert found.version is not None
        assert not route.versions[found.version].retired


@given(SNAPSHOTS, MODELS, st.booleans())
def test_pinned_versions_of_a_disabled_route_are_always_refused(view: Snapshot, model: str, allowed: bool) -> None:
    name, _, number = model.partition("@")
    assume(number and name in view.routes and not view.routes[name].enabled)
    with pytest.raises(ModelNotFound if _is_gone(view.routes[name], number) else RouteDisabled):
        decide(model, UNREAD, view, allow_unreleased=allowed)


@given(SNAPSHOTS, MODELS)
def test_a_version_that_answers_without_permission_has_been_live(view: Snapshot, model: str) -> None:
    try:
        found = decide(model, UNREAD, view)
    except REFUSALS:
        return
    if found.version is not None:
        assert view.routes[str(found.route)].versions[found.version].released


@given(SNAPSHOTS, MODELS | st.just("auto") | st.text(max_size=20), JUDGED | UNSCORED, st.booleans())
def test_the_same_question_has_the_same_answer(
    view: Snapshot, model: str, scores: Judged | NotScored, allowed: bool
) -> None:
    def outcome() -> Decision | tuple[type[Exception], str]:
        try:
            return decide(model, scores, view, allow_unreleased=allowed)
        except REFUSALS as refused:
            return type(refused), refused.message

    assert outcome() == outcome()


@given(SNAPSHOTS, MODELS | st.sampled_from(["auto", BASE]), JUDGED | UNSCORED, st.booleans(), st.sets(NAMES))
def test_what_is_permitted_decides_as_ever_and_nothing_else_is_reached(
    view: Snapshot, model: str, scores: Judged | NotScored, allowed: bool, permitted: set[str]
) -> None:
    def outcome(routes: set[str] | None) -> Decision | tuple[type[Exception], str | None]:
        only = None if routes is None else frozenset(routes)
        try:
            return decide(model, scores, view, allow_unreleased=allowed, permitted=only)
        except REFUSALS as refused:
            return type(refused), refused.code

    found, free = outcome(permitted), outcome(None)
    assert outcome({"sql", "regex", "gone"}) == free
    if found != free:
        named = model.partition("@")[0] if model != "auto" else None
        if named is None:
            assert isinstance(found, Decision)
            assert (found.engine_name, found.reason) == (BASE, "not_permitted")
            assert found.route not in permitted
        else:
            assert named not in permitted
            assert found == (Forbidden, "not_permitted")
    if isinstance(found, Decision) and found.version is not None:
        assert found.route in permitted


def _is_gone(route: RouteInForce, number: str) -> bool:
    found = route.versions.get(int(number.partition(".")[0]))
    return found is None or found.retired
