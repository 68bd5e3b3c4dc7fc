"""What a process holds of the system, from /proc: whatever an engine took must be back when it is closed."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Held:
    """A moment's holdings. Descriptors are counted by what they lead to: ``socket``, ``pipe``, a path, …

    Of shared memory only what bears the process's number counts, as torch names it: others use the same directory.
    """

    threads: Counter[str]
    tasks: int
    descriptors: Counter[str]
    children: frozenset[str]
    shared: frozenset[str]
    temporary: frozenset[str]

    def more_than(self, other: Held) -> dict[str, object]:
        """What is held here and was not there."""
        return {
            name: found
            for name, found in {
                "threads": self.threads - other.threads,
                "tasks": max(0, self.tasks - other.tasks),
                "descriptors": self.descriptors - other.descriptors,
                "children": self.children - other.children,
                "shared": self.shared - other.shared,
                "temporary": self.temporary - other.temporary,
            }.items()
            if found
        }


def held() -> Held:
    """Now, after a garbage collection."""
    gc.collect()
    tasks = list(Path("/proc/self/task").iterdir())
    return Held(
        threads=Counter(thread.name for thread in threading.enumerate()),
        tasks=len(tasks),
        descriptors=Counter(_descriptors()),
        children=frozenset(pid for task in tasks for pid in _children(task)),
        shared=frozenset(path.name for path in Path("/dev/shm").iterdir() if str(os.getpid()) in path.name),
        temporary=frozenset(path.name for path in Path(tempfile.gettempdir()).iterdir()),
    )


def resident() -> int:
    """Bytes of this process's memory, after a garbage collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()).partition(":")[0])
        except FileNotFoundError:
            continue  # the one that lists them
    return found


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []  # the thread has ended since
