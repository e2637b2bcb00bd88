"""The command reference, made from the command tree itself: `python -m tests.cli_help > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from adapters.main import cli

HEAD = "# Commands\n\nMade by `python -m tests.cli_help > docs/cli.md`; a test fails where it is out of date.\n"


def render() -> str:
    """Every command's `--help`, depth first."""
    context = click.Context(cli, info_name="branchline", **cli.context_settings)
    sections = [f"\n## `{path}`\n\n```text\n{text}\n```" for path, text in _walk(cli, context)]
    return "\n".join([HEAD, *sections]) + "\n"


def _walk(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    context.max_content_width = context.terminal_width = 100
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from _walk(found, click.Context(found, info_name=name, parent=context))


if __name__ == "__main__":
    click.echo(render(), nl=False)
