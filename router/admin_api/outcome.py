"""What an operation came to, as it is answered and as it is kept for a repetition: an answer, or a refusal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from adapters.errors import BranchlineError

from ..errors import PreconditionFailed, error_object, wire_for
from .operation import Answer, Document


@dataclass(frozen=True, slots=True)
class Outcome:
    """`etag` is the ETag's text; `serial` and `route` say what gateways must follow for it to be in force."""

    status: int
    document: Document | str
    etag: str | None = None
    serial: int | None = None
    route: str | None = None

    @classmethod
    def of(cls, answer: Answer) -> Outcome:
        etag = None if answer.revision is None else etag_of(answer.revision)
        return cls(answer.status, answer.document, etag, answer.serial, answer.route)

    @classmethod
    def of_error(cls, error: BranchlineError) -> Outcome:
        """A refusal, as it is told to who asks again."""
        etag = error.headers.get("etag") if isinstance(error, PreconditionFailed) else None
        return cls(wire_for(error).status, error_object(error), etag)

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Outcome:
        return cls(**json.loads(text))


def etag_of(revision: int) -> str:
    return f'"{revision}"'
