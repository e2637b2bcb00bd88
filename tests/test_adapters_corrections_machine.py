"""Corrections, examples, proposals and forgetting in any order, against a book kept in plain Python."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from adapters.corrections import correct, remove_corrections
from adapters.errors import NotFound, Refused
from adapters.examples import add_examples, remove_examples
from adapters.exemplars import exemplars_of
from adapters.feedback import Choice, accept_feedback, queue_feedback, reject_feedback, waiting_feedback
from adapters.fold import fold_routes
from adapters.forget import forget_texts
from adapters.registry import Registry
from adapters.rows import text_digest
from tests.adapter_folders import memory_folder

ROUTES = st.sampled_from(["sql", "regex"])
LABELS = st.sampled_from(["sql", "regex", "base"])
TEXTS = st.sampled_from(["one", "two", "three", "four"])


class CorrectionsMachine(RuleBasedStateMachine):
    """`examples` are (route, text) pairs, `corrected` maps a text to its label, `queue` holds (label, text) pairs."""

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="corrections-machine-", dir=memory_folder()))
        self.registry = Registry.open(f"sqlite:///{self.root / 'registry.db'}", actor="machine")
        for name in ("sql", "regex"):
            self.registry.create_route(name)
        self.examples: set[tuple[str, str]] = set()
        self.corrected: dict[str, str] = {}
        self.queue: list[tuple[str, str]] = []

    def teardown(self) -> None:
        self.registry.close()
        shutil.rmtree(self.root)

    def labels(self, text: str) -> set[str]:
        known = self.corrected.get(text)
        return {known} if known else {route for route, other in self.examples if other == text}

    def settle(self, label: str, text: str) -> None:
        """What a correction does, whoever made it."""
        self.corrected[text] = label
        self.queue = [one for one in self.queue if one != (label, text)]

    @rule(route=ROUTES, text=TEXTS)
    def add(self, route: str, text: str) -> None:
        add_examples(self.registry, route, [text], source="operator")
        self.examples.add((route, text))

    @rule(route=ROUTES, text=TEXTS)
    def remove(self, route: str, text: str) -> None:
        remove_examples(self.registry, route, [text])
        self.examples.discard((route, text))

    @rule(label=LABELS, texts=st.lists(TEXTS, min_size=1, max_size=3))
    def say(self, label: str, texts: list[str]) -> None:
        correct(self.registry, label, texts)
        for text in texts:
            self.settle(label, text)

    @rule(text=TEXTS)
    def take_back(self, text: str) -> None:
        try:
            remove_corrections(self.registry, [text_digest(text)])
            del self.corrected[text]
        except NotFound:
            assert text not in self.corrected

    @rule(label=LABELS, text=TEXTS)
    def propose(self, label: str, text: str) -> None:
        queue_feedback(self.registry, label, text, source="feedback:ann")
        if (label, text) not in self.queue and self.corrected.get(text) != label:
            self.queue.append((label, text))

    @rule(places=st.sets(st.integers(0, 5)), accepted=st.booleans())
    def review(self, places: set[int], accepted: bool) -> None:
        waiting = waiting_feedback(self.registry)
        chosen = tuple(one.id for place, one in enumerate(waiting) if place in places)
        reviewed = [(one.label, one.text) for one in waiting if not chosen or one.id in chosen]
        if accepted and len({text for _, text in reviewed}) < len(reviewed):
            with pytest.raises(Refused, match="proposed for several routes"):
                accept_feedback(self.registry, Choice(chosen))
            return
        (accept_feedback if accepted else reject_feedback)(self.registry, Choice(chosen))
        self.queue = [one for one in self.queue if one not in reviewed]
        for label, text in reviewed if accepted else ():
            self.settle(label, text)

    @rule(label=LABELS)
    def forget(self, label: str) -> None:
        own = {text for route, text in self.examples if route == label}
        forget_texts(self.registry, label)
        self.examples = {one for one in self.examples if one[0] != label}
        self.corrected = {text: to for text, to in self.corrected.items() if to != label and text not in own}
        self.queue = [(to, text) for to, text in self.queue if to != label and text not in own]

    @invariant()
    def the_book_holds(self) -> None:
        expected = {(label, text) for text in ("one", "two", "three", "four") for label in self.labels(text)}
        found = [(one.label, one.text) for one in exemplars_of(self.registry).rows]
        assert sorted(found) == sorted(expected)
        assert [(one.label, one.text) for one in waiting_feedback(self.registry)] == self.queue
        assert fold_routes(self.registry.events()) == {one.name: one for one in self.registry.routes()}


CorrectionsMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestCorrectionsMachine = CorrectionsMachine.TestCase
