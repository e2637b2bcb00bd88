"""The only reader of the server's environment: flags and variables become one checked value."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from adapters.home import Home

from .auth import is_loopback
from .classify.encoding import Precision
from .decision_log import DAYS
from .errors import ConfigInvalid

API_KEY = "BRANCHLINE_API_KEY"
ENGINE_KEY = "BRANCHLINE_ENGINE_API_KEY"
ENGINE_PYTHON = "BRANCHLINE_VLLM_PYTHON"
MAX_WORKERS = 64


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Which engine answers, and how it is started or reached. What vLLM is given is named as vLLM names it.

    `urls` are engines that somebody else started, reached with `key`; `store` is the store's path as those that run
    without Branchline's plugin see it. `python` is the interpreter whose environment holds vLLM. `None` for a limit
    means: large enough for the versions there are.
    """

    backend: str
    base: str
    urls: tuple[str, ...] = ()
    key: str | None = field(default=None, repr=False)
    store: str | None = None
    python: str = sys.executable
    max_loras: int = 4
    max_lora_rank: int | None = None
    max_cpu_loras: int | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Which sentence encoder the gateway may use: a folder or a hub id.

    A classifier says itself how precise the encoder is that it was fitted with; `precision` is for what has none.
    """

    source: str
    precision: Precision


@dataclass(frozen=True, slots=True)
class DecisionLogSettings:
    """Where decisions are written; with `text` what was classified too, for `days` days."""

    path: Path
    text: bool = False
    days: int = DAYS


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """Where operators are answered, and the folders that adapters may be loaded from over HTTP.

    Without a `port` they are answered where everybody is.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    lora_folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. Keys are never shown: not in `repr`, not in logs."""

    home: Home
    engine: EngineSettings
    host: str
    port: int
    api_key: str | None = field(repr=False)
    allow_unreleased: bool
    decision_log: DecisionLogSettings | None
    max_body_bytes: int
    encoder: EncoderSettings | None = None
    workers: int = 1
    admin: AdminSettings = field(default_factory=AdminSettings)


def read_settings(
    home: Home,
    environment: Mapping[str, str],
    *,
    host: str,
    port: int,
    allow_unreleased: bool = False,
    decision_log: Path | None = None,
    decision_log_text: bool = False,
    decision_log_days: int | None = None,
    max_body_mb: int = 8,
    encoder: str | None = None,
    encoder_precision: Precision = "int8",
    workers: int = 1,
    admin_host: str | None = None,
    admin_port: int | None = None,
    lora_folders: Sequence[Path] = (),
    engine: Mapping[str, object],
) -> Settings:
    """Check flags and environment together; `engine` holds fields of `EngineSettings`, `None` for those left open.

    Raises `ConfigInvalid` naming every problem.
    """
    given = {name: value for name, value in engine.items() if value is not None}
    from_environment = {"key": environment.get(ENGINE_KEY), "python": environment.get(ENGINE_PYTHON)}
    found = {name: value for name, value in from_environment.items() if value}
    chosen = EngineSettings(**{**found, **given})  # type: ignore[arg-type]  # the flags' own types
    problems = [
        *([] if 0 <= port <= 65535 else [f"port is {port}, expected 0 to 65535"]),
        *([] if max_body_mb >= 1 else [f"max-body-mb is {max_body_mb}, expected 1 or more"]),
        *([] if 1 <= workers <= MAX_WORKERS else [f"workers is {workers}, expected 1 to {MAX_WORKERS}"]),
        *(["--encoder is empty"] if _is_blank(encoder) else []),
        *(f"{name} is set but empty" for name in (API_KEY, ENGINE_KEY) if _is_blank(environment.get(name))),
        *([] if _fits_a_header(chosen.key) else [f"{ENGINE_KEY} holds a space, a line end or a letter outside ASCII"]),
        *_log_problems(decision_log, decision_log_text, decision_log_days),
        *_admin_problems(host, port, admin_host, admin_port),
        *(f"--lora-folder {folder.name!r} is no folder" for folder in lora_folders if not folder.is_dir()),
        *_engine_problems(chosen, given),
    ]
    if problems:
        raise ConfigInvalid("; ".join(problems))
    key = environment.get(API_KEY)
    read = EncoderSettings(encoder, encoder_precision) if encoder else None
    kept = DecisionLogSettings(decision_log, decision_log_text, decision_log_days or DAYS) if decision_log else None
    admin = AdminSettings(admin_host or host, admin_port, tuple(folder.resolve() for folder in lora_folders))
    most = max_body_mb * 1024 * 1024
    return Settings(home, chosen, host, port, key, allow_unreleased, kept, most, read, workers, admin)


def _admin_problems(host: str, port: int, admin_host: str | None, admin_port: int | None) -> Sequence[str]:
    if admin_port is None:
        return [] if admin_host is None else ["--admin-host needs --admin-port"]
    beyond = admin_host is not None and is_loopback(host) and not is_loopback(admin_host)
    return [
        *([] if 0 <= admin_port <= 65535 else [f"admin-port is {admin_port}, expected 0 to 65535"]),
        *(["--admin-port is --port; leave it out to answer operators there"] if port == admin_port != 0 else []),
        *(["--admin-host is open beyond this machine, and --host is not"] if beyond else []),
    ]


def _log_problems(path: Path | None, text: bool, days: int | None) -> Sequence[str]:
    return [
        *(["--decision-log-text needs --decision-log"] if text and path is None else []),
        *(["--decision-log-days needs --decision-log-text"] if days is not None and not text else []),
        *([f"decision-log-days is {days}, expected 1 to 3650"] if days is not None and not 1 <= days <= 3650 else []),
    ]


def _is_blank(value: str | None) -> bool:
    return value is not None and not value.strip()


def _fits_a_header(key: str | None) -> bool:
    return key is None or not key.strip() or (key.isascii() and key.isprintable() and " " not in key)


def _engine_problems(engine: EngineSettings, given: Mapping[str, object]) -> Sequence[str]:
    """Flags that would have no effect are refused: who gives one believes that it has."""
    shown = {url: "URL" if _has_key(url) else f"{url!r:.100}" for url in engine.urls}  # a key is not repeated
    problems = [f"--engine {shown[url]}: {fault}" for url in engine.urls if (fault := _url_fault(url))]
    if engine.urls and engine.backend != "vllm":
        problems.append(f"--engine needs --backend vllm, found {engine.backend}")
    if engine.store and not engine.urls:
        problems.append("--engine-store needs --engine")
    if len({url.rstrip("/") for url in engine.urls}) < len(engine.urls):
        problems.append("--engine names an engine twice")
    managed = engine.backend == "vllm" and not engine.urls
    unused = [] if managed else sorted(set(given) - {"backend", "base", "urls", "key", "store"})
    if unused:
        named = {"python": "--engine-python", "arguments": "flags after --"}
        flags = ", ".join(named.get(name, f"--{name.replace('_', '-')}") for name in unused)
        problems.append(f"{flags}: only for an engine that Branchline starts (--backend vllm without --engine)")
    return problems


def is_engine_address(url: str) -> bool:
    """Whether `url` is http or https with a host, a port that can be, and no key in it."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not _has_key(url)
    except ValueError:
        return False


def _has_key(url: str) -> bool:
    return "@" in url.partition("://")[2].partition("/")[0]


def _url_fault(url: str) -> str | None:
    if _has_key(url):
        return f"a URL may not carry a key; set {ENGINE_KEY}"
    if not is_engine_address(url):
        return "expected http://HOST:PORT"
    parts = urlsplit(url)
    return None if parts.path in ("", "/") and not parts.query and not parts.fragment else "expected no path"
