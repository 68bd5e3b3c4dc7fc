"""Frames: what goes in comes out, to the bit, and nothing but plain data goes in."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from frames import same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bestiary.core.errors import EngineError
from bestiary.core.runtime.transport import Channel, Codec


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True, kw_only=True)
class Named:
    first: Any
    second: Any = None


@dataclass(frozen=True)
class Message:
    number: int
    content: Any
    more: Any = None


CODEC = Codec([Message, Pair, Named])
_NUMBERS = st.one_of(arrays.boolean_dtypes(), arrays.integer_dtypes(), arrays.floating_dtypes())
_ARRAYS = arrays.arrays(_NUMBERS, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
_PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
_KEYS = st.one_of(st.integers(), st.text(max_size=4), st.tuples(st.integers(), st.text(max_size=2)))
_CONTENT = st.recursive(
    st.one_of(_PLAIN, _ARRAYS, st.frozensets(st.integers(), max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(_KEYS, inner, max_size=4),
        st.builds(Pair, inner, inner),
        st.builds(Named, first=inner, second=inner),
        st.builds(Message, st.integers(), inner, inner),
    ),
    max_leaves=12,
)


def _pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left, CODEC), Channel(right, CODEC)


@settings(max_examples=150, deadline=None)
@given(st.builds(Message, st.integers(), _CONTENT))
def test_what_goes_in_comes_out(message: Message) -> None:
    near, far = _pair()
    near.send(message)
    near.send(Message(1, "after"))
    found = far.receive()
    assert same(message, found), (message, found)
    assert far.receive() == Message(1, "after")
    assert not far.waiting()
    near.close()
    far.close()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=16))
def test_strange_bytes_are_refused(header: bytes, payload: bytes) -> None:
    with pytest.raises(EngineError, match="E-RUN-FRAME"):
        CODEC.decode(b"[" + header, bytearray(payload))


@pytest.mark.parametrize(
    "content", [object(), len, {1, "x", 2.5, None, b"bytes"}, np.array([object()]), np.array(["text"]), 1j, Codec([])]
)
def test_what_is_no_plain_data_does_not_go(content: object) -> None:
    with pytest.raises(
        EngineError, match=r"Message\.content: can't be sent to another process; found a value of"
    ) as caught:
        CODEC.encode(Pair(1, Message(1, [content])))
    assert " at 0x" not in str(caught.value)


def test_what_json_cannot_write_does_not_go() -> None:
    endless: list[object] = []
    endless.append(endless)
    for content in (endless, 10**5000):
        with pytest.raises(
            EngineError, match=r"message: can't be sent to another process; found (Recursion|Value)Error"
        ):
            CODEC.encode(Message(1, content))


def test_only_known_classes_come_out() -> None:
    frame = Codec([Message, Pair]).encode(Message(1, Pair(1, 2)))
    with pytest.raises(EngineError, match="Pair"):
        Codec([Message]).decode(frame[12:], bytearray())


def test_arrays_are_read_in_place_and_may_be_written() -> None:
    near, far = _pair()
    near.send(Message(1, [np.arange(6, dtype=np.int32)[::2], np.float32(2.5), np.arange(4.0).reshape(2, 2).T]))
    strided, scalar, turned = far.receive().content
    strided += 1
    assert strided.tolist() == [1, 3, 5]
    assert scalar == 2.5
    assert turned.tolist() == [[0, 2], [1, 3]]


def test_more_than_a_socket_holds_and_an_end_in_the_middle() -> None:
    near, far = _pair()
    large = np.arange(500_000)
    sender = threading.Thread(target=near.send, args=(Message(1, large),))
    sender.start()
    assert np.array_equal(far.receive().content, large)
    sender.join()
    frame = CODEC.encode(Message(1, large))
    left, right = socket.socketpair()
    left.sendall(frame[:1000])
    left.close()
    with pytest.raises(EOFError):
        Channel(right, CODEC).receive()


def test_a_sender_whose_peer_does_not_read_can_give_up() -> None:
    def give_up() -> None:
        raise TimeoutError

    near, _far = _pair()
    with pytest.raises(TimeoutError):
        near.write(CODEC.encode(Message(1, np.zeros(10_000_000))), blocked=give_up)


def test_a_frame_that_claims_to_be_huge_is_refused() -> None:
    left, right = socket.socketpair()
    left.sendall(b"\xff" * 12)
    with pytest.raises(EngineError, match="too large"):
        Channel(right, CODEC).receive()


def test_transport_and_ranks_import_no_torch() -> None:
    code = "import sys, bestiary.core.runtime.ranks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
