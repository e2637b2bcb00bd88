"""The only reader of the server's environment: flags and variables become one checked value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.home import Home

from .errors import ConfigInvalid

API_KEY = "BRANCHLINE_API_KEY"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. `api_key` is never shown: not in `repr`, not in logs."""

    home: Home
    backend: str
    base: str
    host: str
    port: int
    api_key: str | None
    allow_unreleased: bool
    decision_log: Path | None
    max_body_bytes: int

    def __repr__(self) -> str:
        return f"Settings(backend={self.backend!r}, base={self.base!r}, bind={self.host}:{self.port})"


def read_settings(
    home: Home,
    environment: Mapping[str, str],
    *,
    backend: str,
    base: str,
    host: str,
    port: int,
    allow_unreleased: bool = False,
    decision_log: Path | None = None,
    max_body_mb: int = 8,
) -> Settings:
    """Check flags and environment together; raises `ConfigInvalid` naming every problem."""
    problems = []
    if not 0 <= port <= 65535:
        problems.append(f"port is {port}, expected 0 to 65535")
    if max_body_mb < 1:
        problems.append(f"max-body-mb is {max_body_mb}, expected 1 or more")
    key = environment.get(API_KEY)
    if key is not None and not key.strip():
        problems.append(f"{API_KEY} is set but empty")
    if problems:
        raise ConfigInvalid("; ".join(problems))
    return Settings(home, backend, base, host, port, key, allow_unreleased, decision_log, max_body_mb * 1024 * 1024)
