"""What a gateway starts for a while ends with it, also where it is killed."""

from __future__ import annotations

import os
import select
import subprocess
import sys

CHILD = """
import sys, time
from router.parent_death import end_with
end_with(int(sys.argv[1]))
print(flush=True)
time.sleep(600)
"""
PARENT = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        try:
            assert _ends(child)
        finally:
            os.close(child)


def test_a_child_whose_parent_died_before_it_could_say_so_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, "1"], stdout=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def _ends(process: int) -> bool:
    """Whether it ends within a minute."""
    return bool(select.select([process], [], [], 60)[0])
