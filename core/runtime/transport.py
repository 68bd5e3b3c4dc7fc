"""How processes of an engine talk: frames over a socket, a JSON header and the raw bytes of its arrays. No pickle.

A frame is ``<IQ`` (bytes of header and payload), the header in UTF-8, the payload. Any dataclass or named tuple of numbers,
text, None, lists, tuples, sets, mappings, numpy arrays and others of its kind goes through; only classes that both sides
know by name come out.
"""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from math import prod
from typing import Any

import numpy as np

from bestiary.core.errors import EngineError

_SIZES = struct.Struct("<IQ")
_ALIGNMENT = 16  # bytes: arrays are read where they arrive
_LIMIT = 2**32  # bytes of a frame: more is no message of ours
_KINDS = "biufc"  # of numpy dtypes: numbers and booleans


class Codec:
    """Messages to bytes and back.

    Args:
        classes: the dataclasses and named tuples that may go through, themselves or inside of others.
    """

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = {cls.__name__: cls for cls in classes}
        self._names = {cls: _names(cls) for cls in self._classes.values()}

    def encode(self, message: object) -> bytes:
        """The frame of a message.

        Raises:
            EngineError: it holds something that is no plain data, which its text names.
        """
        arrays: list[np.ndarray[Any, Any]] = []
        try:
            content = self._plain(message, "message", arrays)
            described = [[array.dtype.str, array.shape] for array in arrays]
            header = json.dumps([content, described], separators=(",", ":")).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise _unsent("message", f"{type(error).__name__}: {error}") from error
        pieces = [header]
        for array in arrays:
            pieces += [array.tobytes(), bytes(-array.nbytes % _ALIGNMENT)]
        return b"".join([_SIZES.pack(len(header), sum(map(len, pieces)) - len(header)), *pieces])

    def decode(self, header: bytes, payload: bytearray) -> Any:
        """The message of a frame; its arrays are writable views of the payload.

        Raises:
            EngineError: no other codec with these classes made it.
        """
        try:
            content, described = json.loads(header)
            arrays, start = [], 0
            for name, shape in described:
                array = _array(payload, start, np.dtype(name), tuple(shape))
                arrays.append(array)
                start += array.nbytes + -array.nbytes % _ALIGNMENT
            return self._built(content, arrays)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise EngineError("E-RUN-FRAME", "message", f"can't be read: {error}") from None

    def _plain(self, value: Any, where: str, arrays: list[np.ndarray[Any, Any]]) -> Any:
        """What JSON can say: lists are lists, all else that has parts is an object with one key, its kind.

        Args:
            where: the innermost field that holds it.
        """
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
            arrays.append(value)
            return {"array": len(arrays) - 1}
        if isinstance(value, list):
            return [self._plain(item, where, arrays) for item in value]
        if isinstance(value, Mapping):
            return {"map": [[self._plain(part, where, arrays) for part in item] for item in value.items()]}
        if isinstance(value, (set, frozenset)):
            return {"set": [self._plain(item, where, arrays) for item in value]}
        kind = type(value).__name__
        if self._classes.get(kind) is type(value):
            names = self._names[type(value)]
            return {"class": [kind, *(self._plain(getattr(value, name), f"{kind}.{name}", arrays) for name in names)]}
        if type(value) is tuple:
            return {"tuple": [self._plain(item, where, arrays) for item in value]}
        raise _unsent(where, f"a value of type {kind}")

    def _built(self, value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
        if isinstance(value, list):
            return [self._built(item, arrays) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "array":
            return arrays[content]
        parts = [self._built(item, arrays) for item in content]
        if kind == "class":
            cls = self._classes[parts[0]]
            return cls(**dict(zip(self._names[cls], parts[1:], strict=True)))
        return {"map": dict, "set": frozenset, "tuple": tuple}[kind](parts)


class Channel:
    """One end of a connection between two processes; one thread uses it.

    Args:
        connection: a connected stream socket, closed with the channel.
    """

    def __init__(self, connection: socket.socket, codec: Codec) -> None:
        self._connection, self._codec = connection, codec

    def fileno(self) -> int:
        """For ``select``."""
        return self._connection.fileno()

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone.
        """
        self.write(self._codec.encode(message))

    def write(self, frame: bytes, *, blocked: Callable[[], None] | None = None) -> None:
        """Send what the codec made of a message.

        Args:
            blocked: called now and then while the other side does not read; may raise to give up.

        Raises:
            OSError: the other side is gone.
        """
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[self._connection.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                if not _ready(self._connection, select.POLLOUT, 0.1) and blocked is not None:
                    blocked()

    def receive(self) -> Any:
        """Wait for a message.

        Raises:
            EOFError: the other side is gone.
        """
        header, payload = _SIZES.unpack(self._exactly(_SIZES.size))
        if header + payload > _LIMIT:
            raise EngineError("E-RUN-FRAME", "message", "is too large", found=f"{header + payload:,} bytes")
        return self._codec.decode(bytes(self._exactly(header)), self._exactly(payload))

    def waiting(self) -> bool:
        """Whether ``receive`` has something to read, be it the end."""
        return _ready(self._connection, select.POLLIN, 0)

    def close(self) -> None:
        """Close this end; the other side sees it."""
        self._connection.close()

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            try:
                count = self._connection.recv_into(rest)
            except ConnectionError:
                count = 0
            if not count:
                raise EOFError("the other process is gone")
            rest = rest[count:]
        return data


def _names(cls: Any) -> tuple[str, ...]:
    """Of the fields that a class is made from."""
    return tuple(field.name for field in fields(cls) if field.init) if is_dataclass(cls) else cls._fields


def _unsent(where: str, found: str) -> EngineError:
    return EngineError(
        "E-RUN-FRAME",
        where,
        "can't be sent to another process",
        found=found,
        expected="numbers, text, arrays, and what is made of them",
        hint="this is a fault of bestiary, which the engine outlives: report it",
    )


def _ready(connection: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()  # select can't see descriptors above 1023, which a busy server has
    poll.register(connection, event)
    return bool(poll.poll(seconds * 1000))


def _array(payload: bytearray, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if dtype.kind not in _KINDS:
        raise ValueError(f"arrays of {dtype} are no numbers")
    if not prod(shape):
        return np.empty(shape, dtype)
    return np.frombuffer(payload, dtype, prod(shape), start).reshape(shape)
