"""Versions: list, show, publish, retire, and file evidence about them."""

from __future__ import annotations

from adapters.base import find_base
from adapters.evidence import Evidence, parse_evidence
from adapters.publish import Provenance, Published, attach_evidence, publish_folder
from adapters.rows import canonical_json

from .bodies import Because, NewEvidence, Publication, Waits
from .documents import changed, version_document
from .folders import find_folder
from .operation import Answer, Asked, Operation


def _list(asked: Asked) -> Answer:
    state = asked.registry.route(asked.route)
    versions = asked.registry.versions(asked.route)
    return Answer({"versions": [version_document(one, state) for one in versions]}, revision=state.revision)


def _show(asked: Asked) -> Answer:
    state = asked.registry.route(asked.route)
    found = asked.registry.version(asked.route, asked.number)
    evidence = asked.registry.evidence_digests(asked.route, asked.number)
    return Answer({**version_document(found, state), "evidence": evidence}, revision=state.revision)


def publish(asked: Asked, folder: str, evidence: Evidence | None, base_is_same: str | None = None) -> Published:
    """Publish a folder of the server's `--lora-folder` as the next version of the route that is asked about."""
    return publish_folder(
        asked.registry,
        asked.store,
        asked.route,
        find_folder(folder, asked.place.lora_folders),
        find_base(asked.place.base, cache=asked.place.home.fingerprints),
        evidence=evidence,
        provenance=Provenance(base_is_same=base_is_same),
    )


def _publish(asked: Asked) -> Answer:
    wanted: Publication = asked.body
    evidence = None if wanted.evidence is None else parse_evidence(canonical_json(wanted.evidence))
    done = publish(asked, wanted.folder, evidence, wanted.base_is_same)
    state = asked.registry.route(asked.route)
    more = {
        "created": done.created,
        "left_behind": list(done.left_behind),
        "evidence": asked.registry.evidence_digests(asked.route, done.version.number),
    }
    document = {**version_document(done.version, state), **more}
    return Answer(document, 201 if done.created else 200, state.revision)


def _retire(asked: Asked) -> Answer:
    return changed(
        asked.registry.retire(asked.route, asked.number, why=asked.body.why, expected_revision=asked.expected)
    )


def _attach(asked: Asked) -> Answer:
    evidence = parse_evidence(canonical_json(asked.body.model_dump()))
    found = asked.registry.version(asked.route, asked.number)
    return Answer({"digest": attach_evidence(asked.registry, asked.store, found, evidence)}, 201)


VERSIONS = (
    Operation(
        "list_versions", "GET", "/routes/{route}/versions", "operator", "A route's versions.", _list, of_route=True
    ),
    Operation(
        "show_version",
        "GET",
        "/routes/{route}/versions/{number}",
        "operator",
        "A version, its stage and its evidence.",
        _show,
        of_route=True,
    ),
    Operation(
        "publish_version",
        "POST",
        "/routes/{route}/versions",
        "admin",
        "Publish a PEFT folder of this server as the next version. Nothing goes live.",
        _publish,
        Publication,
        status=(200, 201),
        of_route=True,
        again=True,
    ),
    Operation(
        "retire_version",
        "POST",
        "/routes/{route}/versions/{number}/retire",
        "admin",
        "Take a version out for good.",
        _retire,
        Because,
        Waits,
        of_route=True,
        conditional=True,
        follows="events",
    ),
    Operation(
        "attach_evidence",
        "POST",
        "/routes/{route}/versions/{number}/evidence",
        "admin",
        "File evidence about a version.",
        _attach,
        NewEvidence,
        status=(201,),
        of_route=True,
        again=True,
    ),
)
