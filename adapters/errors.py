"""One tree of errors for the control plane.

A message says what was found and what was expected; `hint` says in one line what to do about it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence


class BranchlineError(Exception):
    """Root of the error trees of all rooms: what the command line shows as one line instead of a traceback."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class AdaptersError(BranchlineError):
    """Base of every error this package raises on purpose."""


class InvalidName(AdaptersError):
    """A route name, version reference or policy key that breaks the grammar."""


class NotFound(AdaptersError):
    """A route, version, classifier or file that does not exist."""


class AlreadyExists(AdaptersError):
    """Something of that name exists already."""


class Conflict(AdaptersError):
    """The route changed since the caller read it (expected revision differs)."""


class Refused(AdaptersError):
    """The registry's rules do not allow the change in the present state."""


class QueueFull(Refused):
    """As much as may wait for an operator waits already."""


class GateRefused(Refused):
    """The promotion gate found unmet conditions; `unmet` lists every one of them."""

    def __init__(self, message: str, *, hint: str, unmet: Sequence[str]) -> None:
        super().__init__(message, hint=hint)
        self.unmet = tuple(unmet)


class BadAdapter(AdaptersError):
    """A PEFT folder that is not loadable or not safe; `problems` lists every reason."""

    def __init__(self, message: str, *, hint: str, problems: Sequence[str]) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class BadInput(AdaptersError):
    """A file of rows, evidence or manifest that breaks its format."""


class StoreCorrupted(AdaptersError):
    """Stored bytes no longer match the digest they are filed under."""


class RegistryUnavailable(AdaptersError):
    """The registry's database cannot be opened, read or written, or has an unknown schema."""


def shown(value: object, limit: int = 80) -> str:
    """A foreign value as a message shows it: its repr, cut short, without walking into deep or long ones."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, limit, limit
    text = short.repr(value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."
