"""Weight files whose pages are in use, and whether they are still what was mapped."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import NamedTuple

from bestiary.core.errors import EngineError


class _Mapped(NamedTuple):
    """A file that was mapped. ``descriptor`` is open as long as the mapping lives."""

    mapping: weakref.ref[mmap.mmap]
    descriptor: int
    size: int
    modified: int  # in nanoseconds


class MappedFiles:
    """The files that are mapped, each as long as something uses its pages: of weights that were copied, none stays.

    A mapping shows what is written into its file, and reading a page beyond the end of one that was truncated kills the
    process. A file that was deleted, renamed or replaced by another of its name stays what it was to those who have it mapped.
    """

    def __init__(self) -> None:
        self._files: dict[str, _Mapped] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files whose pages are in use."""
        return tuple(name for name, file in list(self._files.items()) if file.mapping() is not None)

    def add(self, name: str, mapping: mmap.mmap, descriptor: int) -> None:
        """A file was mapped from an open descriptor, which stays the caller's.

        Raises:
            EngineError: it was mapped before, and is not any more what it was then.
        """
        found, before = os.fstat(descriptor), self._files.get(name)
        if before is not None and (found.st_size, found.st_mtime_ns) != (before.size, before.modified):
            raise _changed(name, "another size or time of modification", None)
        own = os.dup(descriptor)
        self._files[name] = _Mapped(weakref.ref(mapping), own, found.st_size, found.st_mtime_ns)
        weakref.finalize(mapping, os.close, own).atexit = False

    def check(self) -> None:
        """Look whether a file was written to, truncated or extended since it was mapped; one or two microseconds each.

        Raises:
            EngineError: naming the file.
        """
        for name, file in self._files.items():
            mapping = file.mapping()  # while it is held, the descriptor is open
            if mapping is None:
                continue
            try:
                found = os.fstat(file.descriptor)
            except OSError as error:
                raise _changed(name, f"can't be looked at: {error.strerror}", None) from None
            if found.st_size != file.size:
                raise _changed(name, f"{found.st_size} bytes", f"{file.size} bytes")
            if found.st_mtime_ns != file.modified:
                raise _changed(name, "another time of modification", None)


def _changed(name: str, found: str, expected: str | None) -> EngineError:
    return EngineError(
        "E-RUN-WEIGHTS",
        name,
        "has changed while the engine reads its weights from it",
        found=found,
        expected=expected,
        hint="check the file with bestiary verify and load the engine again; a new file that is renamed over it leaves "
        "running engines what they have",
    )
