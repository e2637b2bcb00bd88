"""Fuzz targets of the control plane: folders, rows, evidence, logs, names, URLs."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from adapters.base import Base, find_base
from adapters.check import CONFIG_FILE, WEIGHTS_FILE, Limits, check_folder
from adapters.classifier_evidence import ClassifierEvidence, DecidedItem, parse_classifier_evidence
from adapters.classifier_gate import ClassifierPolicy, judge_classifier
from adapters.database import connect
from adapters.decisions import find_text, read_decisions, read_logged
from adapters.errors import BadAdapter, BadInput, InvalidName, NotFound, RegistryUnavailable, StoreCorrupted
from adapters.evidence import parse_evidence
from adapters.gate import Candidate, judge
from adapters.manifests import digest_of_files, manifest_bytes
from adapters.policy import Policy, parse_assignments
from adapters.probes import recorded_prompts
from adapters.rows import read_asked, read_examples, read_labelled, read_prompts, read_texts
from adapters.store import Store
from adapters.tensors import read_header
from adapters.types import AdapterRef, Manifest, parse_route_name
from tests.adapter_folders import adapter_config, adapter_tensors, bf16, make_base, make_evidence, tensor_file
from tests.fuzz_mutations import Files
from tests.fuzz_target import INPUT, Target, of_bytes, of_file, written

WEIGHTS, BASE = "a" * 64, "b" * 64


def adapters_targets(root: Path) -> list[Target]:
    """`root` is a folder to make a base in."""
    base = make_base(root / "base")
    return [*_folders(base), *_rows(), *_evidence(), *_logs(), *_words(), _registry(root)]


def _folders(base: Base) -> list[Target]:
    weights = tensor_file(adapter_tensors())
    halves = tensor_file({name: bf16(array) for name, array in adapter_tensors().items()})
    folders = tuple(
        {CONFIG_FILE: json.dumps(adapter_config(base.id, **changes)).encode(), WEIGHTS_FILE: content}
        for content, changes in (
            (weights, {}),
            (halves, {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}}),
        )
    )
    with_template = {**folders[0], "tokenizer_config.json": json.dumps({"chat_template": _template(base)}).encode()}

    def checked(files: Files, scratch: Path) -> object:
        return check_folder(written(files, scratch), base, limits=Limits())

    def stored(files: Files, scratch: Path) -> object:
        folder = scratch / "sql" / digest
        folder.mkdir(parents=True)
        written(files, folder)
        return Store(scratch).manifest("sql", digest)

    held = {CONFIG_FILE: "c" * 64, WEIGHTS_FILE: "d" * 64}
    digest = digest_of_files(held)
    manifest = manifest_bytes(Manifest(digest, held, 9, "tiny", BASE, 2, 4.0, ("q_proj",)))
    based = {file.name: file.read_bytes() for file in base.folder.iterdir()}
    return [
        Target("adapter folder", checked, (BadAdapter,), (*folders, with_template)),
        of_file("safetensors header", read_header, (ValueError,), WEIGHTS_FILE, weights, halves),
        Target("base folder", lambda files, scratch: find_base(str(written(files, scratch))), (BadInput,), (based,)),
        Target("stored manifest", stored, (StoreCorrupted, NotFound), ({"manifest.json": manifest},)),
    ]


def _template(base: Base) -> str:
    return str(json.loads((base.folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"])


def _rows() -> list[Target]:
    rows = b"\n".join(
        json.dumps(row).encode()
        for row in (
            {"text": "select all users", "label": "sql", "input": "a", "output": "b", "choices": ["b", "c"]},
            {"text": "é 😀", "label": "base", "messages": [_turn("user"), _turn("assistant")]},
            {"text": "x", "label": "oos", "messages": [_turn("system"), _turn("user"), _turn("assistant")]},
        )
    )

    def read(path: Path) -> object:
        return [reader(path) for reader in (read_examples, read_texts, read_labelled, read_prompts, read_asked)]

    return [
        of_file("rows", read, (BadInput,), "rows.jsonl", rows, b"\xef\xbb\xbf" + rows + b"\n\n"),
        of_file(
            "rows, gzip",
            read,
            (BadInput,),
            "rows.jsonl.gz",
            gzip.compress(rows),
            gzip.compress(rows) + gzip.compress(b"\n" + rows),
        ),
    ]


def _turn(role: str) -> dict[str, str]:
    return {"role": role, "content": f"of the {role}"}


def _evidence() -> list[Target]:
    probe = {"prompts": [{"prompt_tokens": [1, 2], "tokens": [3], "logprobs": [-0.5], "base_logprobs": [-2.0]}]}
    whole = make_evidence(WEIGHTS, BASE, probe=probe, selection={"steps": [1, 2]})

    def judged(raw: bytes) -> object:
        found = parse_evidence(raw)
        recorded_prompts(found, found.weights_digest)
        return judge(Candidate(WEIGHTS, BASE, [found]), [found, whole], Policy(), None)

    items = tuple(
        DecidedItem(f"row-{n}", "sql" if n % 2 else "base", "sql" if n % 2 else None, 1.0, False) for n in range(6)
    )
    decided = ClassifierEvidence(WEIGHTS, "file", "held.jsonl", BASE, items)

    def classifier_judged(raw: bytes) -> object:
        return judge_classifier([parse_classifier_evidence(raw)], [decided], ClassifierPolicy())

    return [
        of_bytes("evidence", judged, (BadInput,), whole.to_json().encode()),
        of_bytes("classifier evidence", classifier_judged, (BadInput,), decided.to_json().encode()),
    ]


def _logs() -> list[Target]:
    lines = b"".join(
        json.dumps({"time": 1.5, "route": "sql", "request_id": f"r-{n}", "outcome": "ok", "text": "hello"}).encode()
        + b"\n"
        for n in range(3)
    )

    def read(path: Path) -> object:
        return list(read_decisions(path)), read_logged(path), find_text(path, "r-1")

    return [of_file("decision log", read, (BadInput, NotFound), "decisions.jsonl", lines)]


def _words() -> list[Target]:
    def name(raw: bytes) -> object:
        text = raw.decode("utf-8", "surrogateescape")
        return AdapterRef.parse(text), parse_route_name(text)

    def policy(raw: bytes) -> object:
        value = json.loads(raw)
        return Policy.of(value) if isinstance(value, dict) else None

    def assignments(raw: bytes) -> object:
        return Policy.of(parse_assignments(raw.decode("utf-8", "surrogateescape").split()))

    document = json.dumps({**asdict(Policy()), "cold_wait_ms": 5}).encode()
    return [
        of_bytes("names", name, (InvalidName,), b"sql"),
        of_bytes("policy", policy, (InvalidName, ValueError, RecursionError), document),  # the last two are json's
        of_bytes("policy words", assignments, (InvalidName,), b"min_items=5 guardrails=routed"),
    ]


def _registry(root: Path) -> Target:
    """A registry's URL and file. Nothing is made, and no other host than a closed port of this one is asked."""
    file = root / "registry.db"
    connect(f"sqlite:///{file}").dispose()
    content = file.read_bytes()

    def opened(files: Files, scratch: Path) -> object:
        given = files.get(INPUT, b"").decode("utf-8", "surrogateescape")
        url = given.replace("ROOT", str(written({"registry.db": files.get("registry.db", b"")}, scratch)))
        if not _leaves(url):
            connect(url, create=False, busy_timeout_ms=50).dispose()
        return None

    servers = (
        b"postgresql+psycopg://someone:secret@127.0.0.1:1/name?connect_timeout=1&sslmode=disable",
        b"postgresql://[::1]:1/name",
        b"sqlite:////ROOT/none.db?timeout=5&mode=ro&uri=true",
    )
    seed = {INPUT: b"sqlite:///ROOT/registry.db", "registry.db": content}
    others = tuple({INPUT: url} for url in servers)
    return Target("registry", opened, (RegistryUnavailable,), (seed,), others)


def _leaves(url: str) -> bool:
    try:
        parsed = make_url(url)
        return parsed.get_backend_name() != "sqlite" and (
            parsed.host not in ("127.0.0.1", "::1")
            or parsed.port != 1
            or bool(set(parsed.query) & {"host", "hostaddr", "service", "port"})
        )
    except (SQLAlchemyError, ValueError):
        return False
