"""A PostgreSQL of the test's own: a fresh cluster on a Unix socket. Skips where there is no server or no driver."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

USER = "branchline"


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None or find_spec("psycopg") is None:
        pytest.skip("no PostgreSQL server, or no psycopg")
    owner = _owner()
    root = Path(tempfile.mkdtemp(prefix="branchline-pg-"))
    try:
        if owner is not None:
            os.chown(root, owner.pw_uid, owner.pw_gid)
        data = root / "data"
        _run(["initdb", "-D", str(data), "-U", USER, "-A", "trust", "--no-sync"], owner)
        options = f"-k {root} -c listen_addresses='' -c fsync=off"
        _run(["pg_ctl", "-D", str(data), "-o", options, "-l", str(root / "log"), "-w", "start"], owner)
        try:
            yield f"postgresql+psycopg://{USER}@/postgres?host={root}"
        finally:
            _run(["pg_ctl", "-D", str(data), "-m", "immediate", "stop"], owner)
    finally:
        shutil.rmtree(root, ignore_errors=True)


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
