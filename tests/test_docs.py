"""The documents cannot go stale: what is generated is up to date, and every command shown exists as shown."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from adapters.main import cli
from tests import method_settings
from tests.readme_tree import README, written

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "admin.md",
    ROOT / "docs" / "vllm.md",
    ROOT / "docs" / "classifier.md",
    ROOT / "docs" / "keys.md",
    ROOT / "docs" / "methods.md",
    ROOT / "docs" / "registry.md",
    ROOT / "docs" / "workers.md",
    ROOT / "examples" / "quickstart" / "demo.py",
]


def shown_commands() -> list[str]:
    found = [
        line
        for page in PAGES
        for line in re.findall(r"^\s*(?:\$ )?(branchline .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    return sorted({line.split("  #")[0].split("   ")[0].strip() for line in found})


def test_the_command_reference_is_what_the_commands_say() -> None:
    # A process of its own: click keeps a command's first help option, so a test that ran a command alone changes it.
    command = [sys.executable, "-m", "tests.cli_help"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == made, (
        "run `python -m tests.cli_help > docs/cli.md`"
    )


def test_the_file_tree_in_the_readme_is_what_the_files_say() -> None:
    page = README.read_text(encoding="utf-8")
    assert page == written(page), "run `python -m tests.readme_tree`"


@pytest.mark.parametrize("command", shown_commands())
def test_a_command_shown_in_the_documents_parses_as_it_stands(command: str) -> None:
    words = shlex.split(command)[1:]
    found: click.Command = cli
    context = click.Context(cli, info_name="branchline")
    while isinstance(found, click.Group):
        chosen = found.get_command(context, words[0])
        assert chosen is not None, f"no command {words[0]!r} in {command!r}"
        found, words = chosen, words[1:]
    found.make_context(found.name, words, parent=context)


def test_every_relative_link_of_the_readme_leads_to_a_file() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", README.read_text(encoding="utf-8"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_tables_of_training_methods_are_what_the_settings_say() -> None:
    assert method_settings.PAGE.read_text(encoding="utf-8") == method_settings.written(), (
        "run `python -m tests.method_settings`"
    )
