"""What the proof of application of a version is made with: its route's own examples, and what its trainer recorded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import AdaptersError, BadInput
from .evidence import Evidence
from .examples import examples_of
from .journal import Journal
from .store import Store
from .types import AdapterVersion

PROMPTS = 8
MAX_TEXT_CHARACTERS = 2_000
MAX_PROMPT_TOKENS = 8_192
MAX_TOKENS = 64
_LEAST = -1e9  # nats; vLLM itself writes -9999 for impossible
_SLACK = 1e-3  # nats that rounding may lift a log-probability over 0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RecordedPrompt:
    """A greedy continuation as the trainer saw it: token ids, and natural-log probabilities (nats, float32) [tokens]
    of those tokens under the adapter and under the base.
    """

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probes:
    """At most `PROMPTS` user texts, and at most `PROMPTS` recorded prompts; both may be empty."""

    texts: tuple[str, ...] = ()
    recorded: tuple[RecordedPrompt, ...] = ()


NO_PROBES = Probes()


def probes_of(journal: Journal, store: Store, version: AdapterVersion) -> Probes:
    """Texts from all over the route's examples (long ones cut), and the recorded prompts of the newest evidence that
    has usable ones. Reads database and store: not for an event loop.

    Evidence comes from outside: what is missing, altered or malformed is left out with a line in the log. Raises
    `RegistryUnavailable` and `NotFound` as the journal does.
    """
    texts = _spread(examples_of(journal, version.route))
    return Probes(tuple(text[:MAX_TEXT_CHARACTERS] for text in texts), _recorded(journal, store, version))


def _spread(texts: Sequence[str]) -> list[str]:
    """At most `PROMPTS` of `texts`, evenly over the list, the first among them."""
    count = min(PROMPTS, len(texts))
    return [texts[place * len(texts) // count] for place in range(count)]


def _recorded(journal: Journal, store: Store, version: AdapterVersion) -> tuple[RecordedPrompt, ...]:
    for digest in reversed(journal.evidence_digests(version.route, version.number)):
        try:
            found = recorded_prompts(store.evidence(version.route, digest), version.digest)
        except (AdaptersError, OSError) as error:
            logger.warning("evidence %s of %s gives no probes: %s", digest[:16], version.ref, error)
            continue
        if found:
            return found
    return ()


def recorded_prompts(evidence: Evidence, weights_digest: str) -> tuple[RecordedPrompt, ...]:
    """The recorded prompts of `evidence`, empty where it holds none. Raises `BadInput` for other weights' evidence and
    where none of its prompts can be used; of several, those that can be used are returned.
    """
    if evidence.weights_digest != weights_digest:
        raise BadInput("it speaks of other weights", hint="attach the evidence that was taken with these weights")
    prompts = evidence.probe.get("prompts")
    if prompts is None:
        return ()
    if not isinstance(prompts, list):
        raise BadInput("its probe holds no list of prompts", hint="evaluate the version again")
    usable = [found for one in prompts if (found := _recorded_prompt(one)) is not None]
    if len(usable) < len(prompts):
        logger.warning("%d of %d recorded prompts are malformed and left out", len(prompts) - len(usable), len(prompts))
    if prompts and not usable:
        raise BadInput("none of its recorded prompts can be used", hint="evaluate the version again")
    return tuple(usable[:PROMPTS])


def _recorded_prompt(value: object) -> RecordedPrompt | None:
    if not isinstance(value, Mapping):
        return None
    prompt_tokens = _token_ids(value.get("prompt_tokens"), MAX_PROMPT_TOKENS)
    tokens = _token_ids(value.get("tokens"), MAX_TOKENS)
    logprobs, base_logprobs = _logprobs(value.get("logprobs")), _logprobs(value.get("base_logprobs"))
    if not prompt_tokens or not tokens or not len(tokens) == len(logprobs) == len(base_logprobs):
        return None
    return RecordedPrompt(prompt_tokens, tokens, logprobs, base_logprobs)


def _token_ids(value: object, limit: int) -> tuple[int, ...]:
    """Token ids, empty where `value` is anything else than at most `limit` of them."""
    if not isinstance(value, list) or len(value) > limit:
        return ()
    found = tuple(one for one in value if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31)
    return found if len(found) == len(value) else ()


def _logprobs(value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) > MAX_TOKENS:
        return ()
    found = tuple(float(one) for one in value if _is_logprob(one))
    return found if len(found) == len(value) else ()


def _is_logprob(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return _LEAST <= value <= _SLACK
