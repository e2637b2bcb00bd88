"""A PostgreSQL of the test's own: a fresh cluster on a Unix socket. Skips where there is no server or no driver."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import create_engine

USER = "branchline"
_SYSTEM = Path("/usr/lib/postgresql")  # where Debian keeps what it does not put on the path


@dataclass
class PostgresServer:
    """A cluster under `root`; its socket is there too."""

    root: Path
    owner: pwd.struct_passwd | None
    durable: bool = False
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def socket(self) -> Path:
        return self.root / ".s.PGSQL.5432"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.root}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"registry_{next(self._numbers)}"
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url(name)

    def start(self) -> None:
        options = (
            f"-k {self.root} -c listen_addresses='' -c fsync={'on' if self.durable else 'off'} -c max_connections=200"
        )
        self._control("-o", options, "-l", str(self.root / "log"), "-w", "start")

    def stop(self) -> None:
        """End it at once, and every connection with it."""
        self._control("-m", "immediate", "-w", "stop")

    def _control(self, *words: str) -> None:
        _run([_program("pg_ctl"), "-D", str(self.root / "data"), *words], self.owner)


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database."""
    with postgres_server() as server:
        yield server.url()


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[PostgresServer]:
    """A running server; one that is not `durable` leaves it to the kernel when what it writes reaches the disk."""
    if not _program("initdb") or not _program("pg_ctl") or find_spec("psycopg") is None:
        pytest.skip("no PostgreSQL server, or no psycopg")
    owner = _owner()
    root = Path(tempfile.mkdtemp(prefix="branchline-pg-"))
    server = PostgresServer(root, owner, durable)
    try:
        if owner is not None:
            os.chown(root, owner.pw_uid, owner.pw_gid)
        _run([_program("initdb"), "-D", str(root / "data"), "-U", USER, "-A", "trust", "--no-sync"], owner)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _program(name: str) -> str:
    """The path of one of PostgreSQL's programs, the newest there is; empty where there is none."""
    found = sorted(_SYSTEM.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return shutil.which(name) or (str(found[-1]) if found else "")


def _owner() -> pwd.struct_passwd | None:
    """Whose cluster it is: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")


def _run(command: Sequence[str], owner: pwd.struct_passwd | None) -> None:
    identity = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    done = subprocess.run(
        command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, **identity
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
