"""The `branchline` command: a group whose sub-commands each room brings, imported only when used."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

import click

from .errors import BranchlineError
from .output import note

COMMANDS = "branchline.commands"


class LazyGroup(click.Group):
    """Finds sub-commands in an entry-point group and imports one only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_entry_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = _entry_points().get(cmd_name)
        if found is None:
            return None
        try:
            command = found.load()
        except ModuleNotFoundError as error:
            raise BranchlineError(
                f"`branchline {cmd_name}` needs the package {error.name!r}", hint=_extra_hint(found)
            ) from error
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List names with a fixed line each: asking the commands would import them all."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUMMARIES.get(name, "")) for name in self.list_commands(ctx)])


SUMMARIES = {
    "adapter": "Publish, list, verify and retire adapter versions.",
    "classifier": "Fit, evaluate, promote and roll back the classifier.",
    "doctor": "Say what this installation can do, and what is wrong with it.",
    "engine": "List, drain and resume a gateway's engines.",
    "evaluate": "Score an adapter folder on a file and write evidence.",
    "explain": "Say where a text would be routed, and why.",
    "key": "Create, list, change and revoke API keys.",
    "merge": "Merge adapters, or scale one until its guardrails hold.",
    "monitor": "Watch a live version through its gateway; alert, or roll back.",
    "registry": "Look at the registry's database, copy it to another, upgrade it by hand.",
    "route": "Create routes; promote, roll back, disable and enable them.",
    "sequence": "Train a sequence of tasks and say what was forgotten.",
    "serve": "Start a gateway.",
    "train": "Train an adapter and write its evidence.",
}


def _entry_points() -> dict[str, EntryPoint]:
    return {found.name: found for found in entry_points(group=COMMANDS)}


def _extra_hint(found: EntryPoint) -> str:
    room = found.value.partition(".")[0]
    extra = {"router": "serve", "trainer": "train"}.get(room, "serve,train")
    return f"install it with `pip install 'branchline[{extra}]'`"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="branchline", prog_name="branchline")
def cli() -> None:
    """Many LoRA adapters on one frozen base: train, register, route, serve and roll back."""


def require_own_packages() -> None:
    """Stop with one clear line where a foreign package of the same name shadows one of ours."""
    home = Path(__file__).parent.parent
    for name in ("router", "trainer"):
        found = find_spec(name)
        folder = Path(found.origin).parent if found is not None and found.origin else None
        if folder != home / name or not (folder / "py.typed").exists():
            raise BranchlineError(
                f"the package {name!r} that Python finds is not Branchline's: {folder}",
                hint=f"uninstall the other {name!r}, or install Branchline in an environment of its own",
            )


def main() -> None:
    """Run the command line: exit 0 done, 1 refused or failed (one line on stderr), 2 wrong usage."""
    try:
        require_own_packages()
        code = cli(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except BranchlineError as error:
        note(f"branchline: {' '.join(str(error).split())}")
        sys.exit(1)
    except OSError as error:
        note(f"branchline: {error}")
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)  # click hands the code of `ctx.exit` back
