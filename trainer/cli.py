"""The `train` and `evaluate` commands. torch is imported only once there is work to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adapters.base import Base, find_base
from adapters.command import find_version, open_home
from adapters.errors import InvalidName
from adapters.evidence import parse_evidence
from adapters.home import Home, home_options
from adapters.output import json_option, note, print_json, print_table
from adapters.publish import Provenance, Published, publish_folder
from adapters.rows import sha256_file
from adapters.store import Store
from adapters.types import AdapterVersion

from .config import AssessConfig, TrainConfig, read_config, read_yaml
from .errors import ConfigInvalid, Interrupted
from .folder import RunFolder
from .terminal import Terminal, is_main_process

Command = Callable[..., None]
Record = Mapping[str, object]


def config_options(kind: type[BaseModel]) -> Callable[[Command], Command]:
    """One option per field of `kind`. Its validation, not click's, so that every problem is reported at once."""

    def decorate(command: Command) -> Command:
        for name, field in reversed(kind.model_fields.items()):
            if name != "name":
                command = _option(name, field)(command)
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    several = isinstance(field.default, tuple)
    shown = ", ".join(field.default) if several else field.default
    silent = field.is_required() or field.default in (None, (), False)
    return click.option(
        f"--{name.removesuffix('s') if several else name}".replace("_", "-"),
        name,
        is_flag=field.default is False,
        multiple=several,
        metavar=None if field.default is False else _metavar(field),
        default=None,
        help=f"{field.description}{' Required.' if field.is_required() else '' if silent else f'  [default: {shown}]'}",
    )


def _metavar(field: FieldInfo) -> str:
    """What an option takes: what its field says, or else the field's type."""
    if isinstance(field.json_schema_extra, dict) and "metavar" in field.json_schema_extra:
        return str(field.json_schema_extra["metavar"])
    annotation = field.annotation
    for kind, shown in ((Path, "FILE"), (int, "INTEGER"), (float, "NUMBER")):
        if kind is annotation or kind in get_args(annotation):
            return shown
    choices = get_args(annotation)
    return f"[{'|'.join(choices)}]" if get_origin(annotation) is Literal else "TEXT"


@click.command()
@click.argument("name_or_file", metavar="NAME|FILE.yaml")
@config_options(TrainConfig)
@click.option("--publish", is_flag=True, help="Publish the adapter with its evidence as the route's next version.")
@json_option
@home_options
def train(home: Home, name_or_file: str, publish: bool, as_json: bool, **options: object) -> None:
    """Train an adapter for the route NAME and write its evidence.

    A YAML file holds the same settings, with underscores, and `name`; options overrule it. A finished --out is
    left as it is; an unfinished one is taken up where it stopped.

    Several processes, started by `torchrun` or `accelerate launch`, train one adapter together.
    """
    with exit_codes():
        config = read_config(TrainConfig, with_start(home, gather(name_or_file, options)))
        base = find_base(config.base, cache=home.fingerprints)
        identity = config.identity(base.fingerprint, {name: sha256_file(file) for name, file in config.files.items()})
        folder = RunFolder(config.out)
        record = folder.finished(identity)
        if record is None:
            record = execute(config, base, identity, folder)
        elif is_main_process():
            note(f"already trained: {config.out.name} holds the finished run of these settings")
        if not is_main_process():
            return
        note(f"evidence to look at: {folder.page}")
        published = publish_run(home, config, base, folder, record) if publish else {}
    show({**record, **published}, as_json)


@click.command()
@click.argument("adapter", metavar="FOLDER|ROUTE@N")
@config_options(AssessConfig)
@json_option
@home_options
def evaluate(home: Home, adapter: str, as_json: bool, **options: object) -> None:
    """Compare an adapter folder or a published version with its base and write fresh evidence to --out."""
    with exit_codes():
        config = read_config(AssessConfig, given(options), hint="see `branchline evaluate --help`")
        base = find_base(config.base, cache=home.fingerprints)
        folder, name = adapter_folder(home, adapter)
        quiet_libraries()
        from .assess import assess

        with Terminal().listening() as terminal:
            evidence, result = assess(config, config.route or name, folder, base, terminal)
        note(f"evidence to look at: {config.out / 'evidence.html'}")
    digests = {"weights_digest": evidence.weights_digest, "evidence_digest": evidence.digest}
    show({"name": config.route or name, **digests, "result": result}, as_json)


def gather(name_or_file: str, options: Mapping[str, object]) -> dict[str, object]:
    """The settings of the YAML file, if one is named, under the options that were given."""
    if name_or_file.endswith((".yaml", ".yml")):
        return read_yaml(Path(name_or_file)) | given(options)
    return {"name": name_or_file} | given(options)


def given(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value not in (None, (), False)}


def with_start(home: Home, settings: Mapping[str, object]) -> dict[str, object]:
    """`settings` with the folder of the version in place of ROUTE@N in `start`."""
    start = settings.get("start")
    if isinstance(start, str) and "@" in start and not Path(start).exists():
        return {**settings, "start": adapter_folder(home, start)[0]}
    return dict(settings)


def execute(config: TrainConfig, base: Base, identity: str, folder: RunFolder) -> Record:
    """Train and judge, or go on with it."""
    quiet_libraries()
    from .run import prepare

    lock = folder.locked() if is_main_process() else contextlib.nullcontext()
    with lock, Terminal().listening() as terminal:
        return prepare(config, base, identity, folder, terminal).execute()


def publish_run(home: Home, config: TrainConfig, base: Base, folder: RunFolder, record: Record) -> Record:
    """Publish the finished run as the route's next version; the same bytes again change nothing."""
    registry, store = open_home(home)
    published = publish_folder(
        registry,
        store,
        config.name,
        folder.adapter,
        base,
        evidence=parse_evidence(folder.evidence.read_bytes()),
        provenance=Provenance(
            training=config.settings,
            data_digests={name: sha256_file(file) for name, file in config.files.items()},
        ),
    )
    return say_published(published)


def say_published(published: Published) -> Record:
    """Tell people which version it is, and return what the record says of it."""
    note(f"{'published' if published.created else 'exists already as'} {published.version.ref}")
    return {"version": str(published.version.ref), "engine_name": published.version.engine_name}


def adapter_folder(home: Home, text: str) -> tuple[Path, str]:
    """The folder and the route name that FOLDER or ROUTE@N stands for."""
    folder = Path(text)
    if folder.is_dir():
        return folder, folder.resolve().name
    store, version = find_published(home, text)
    return store.folder(version.route, version.digest), version.route


def find_published(home: Home, text: str) -> tuple[Store, AdapterVersion]:
    """The version ROUTE@N where no folder is called so; raises `InvalidName` for what is neither, `NotFound`."""
    if "@" not in text:
        raise InvalidName(f"no folder {text!r}", hint="name an adapter folder, or a published version as ROUTE@N")
    registry, store = open_home(home)
    return store, find_version(registry, text)


def quiet_libraries() -> None:
    """Keep transformers' own bars and notices off the terminal: ours say what matters."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # its functions are untyped
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Wrong settings are wrong usage (2); an interrupted run is 130; every other error goes up to `main` (1)."""
    try:
        yield
    except ConfigInvalid as error:
        note(f"branchline: {error}")
        raise click.exceptions.Exit(2) from error
    except Interrupted as error:
        note(f"branchline: {error}")
        raise click.exceptions.Exit(130) from error


def show(record: Record, as_json: bool) -> None:
    """The record as JSON, or its figures as a short table."""
    if as_json:
        print_json(record)
        return
    result = record["result"]
    if not isinstance(result, dict):
        return
    target = result["target"]
    rows = [("target", target["items"], *_figures(target), _points(target["gain_lower_bound"]))]
    for one in result["guardrails"]:
        rise = one["nll_rise_upper_bound"][one["decisive"]]
        kept = "kept" if one["kept"] else "NOT KEPT"
        said = f"{kept}: NLL rise ≤ {rise:.4f}" if rise is not None else f"{kept}: too few items"
        rows.append((one["name"], one["items"], *_figures(one), f"{said} ({one['decisive']})"))
    print_table((str(record["name"]), "items", "base", "adapter", "with 95 % confidence"), rows)


def _figures(found: Mapping[str, float]) -> tuple[str, str]:
    return f"{found['base']:.1%}", f"{found['adapter']:.1%}"


def _points(bound: float | None) -> str:
    return "too few items" if bound is None else f"gain ≥ {100 * bound:+.1f} points"
