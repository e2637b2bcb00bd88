"""What a process has used, read from /proc: CPU time and memory. Linux only, like the measurements that ask."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def cpu_seconds(pid: int, *, ended_children: bool = False) -> float:
    """CPU time of a process and all its threads so far, user and system; 0.0 where it has ended.

    With `ended_children` the time of children that it waited for too.
    """
    try:
        words = (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    counted = words[11:15] if ended_children else words[11:13]
    return sum(map(int, counted)) / os.sysconf("SC_CLK_TCK")


def family_cpu_seconds(pid: int) -> float:
    """CPU time of a process and all that descended from it, children that have ended and were waited for included."""
    return sum(cpu_seconds(member, ended_children=True) for member in family(pid))


def memory_mb(pid: int) -> float:
    """Proportional set size in MB (shared pages divided among those who share them); 0.0 where it has ended."""
    return _mb(pid, "Pss:")


def anonymous_mb(pid: int) -> float:
    """What it has allocated and touched, in MB, pages of files left out: no other process's start or end moves it."""
    return _mb(pid, "Anonymous:")


def _mb(pid: int, name: str) -> float:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(name)), 0.0)


def family(pid: int) -> list[int]:
    """A process and all that descend from it, the eldest first."""
    found = [pid]
    for member in found:
        for listed in (_PROC / str(member) / "task").glob("*/children"):
            try:
                found += [int(child) for child in listed.read_text(encoding="utf-8").split()]
            except OSError:
                continue
    return found


def command_line(pid: int) -> str:
    """The words a process was started with; empty where it has ended."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
