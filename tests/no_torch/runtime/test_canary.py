"""The oracle of the scheduler's tests, itself."""

from __future__ import annotations

from canary import Engine, Rank
from canary_numbers import PRIME, alone


def test_the_canary_reads_what_its_table_shows():
    """The oracle itself: each fault of a table or a block changes the sum."""
    engine = Engine()
    request = engine.submit(list(range(9)), 8)
    engine.step()
    rank, blocks = engine.executor.rank, list(request.blocks[0])

    def fault(change):
        other = Rank(engine.groups, 8, 128)
        for name in ("last", "stored"):
            getattr(other, name)[:] = getattr(rank, name)
        other.tables[0][:], other.keys[0][:], other.values[0][:] = rank.tables[0], rank.keys[0], rank.values[0]
        change(other)
        return other._sequence(request.slot, [int(other.last[request.slot])])[0]

    def stale(r):
        r.keys[0][blocks[0], 1] = r.keys[0][blocks[0], 0]

    def shifted(r):
        r.values[0][blocks[1]] = r.values[0][blocks[1]][[1, 2, 3, 0]]

    def zeroed(r):
        r.keys[0][blocks[0]] = r.values[0][blocks[0]] = 0

    def foreign(r):
        r.tables[0][request.slot, 0] = blocks[1]

    def swapped(r):
        r.tables[0][request.slot, :2] = blocks[1::-1]

    def position(r):
        r.stored[request.slot] -= 1

    right = fault(lambda r: None)
    assert right == alone(engine.groups, request.prompt, 2)[1]
    faults = (stale, shifted, zeroed, foreign, swapped, position, lambda r: r.poison(0, [blocks[0]]))
    assert all(fault(change) != right for change in faults)


def test_the_canarys_numbers_are_exact_in_float32():
    assert (PRIME - 1) * (4000 + 5) < 2**24 and 2 * PRIME * 2000 < 2**24
    assert 1531 * PRIME + 61 * PRIME + 131 * 4096 + 1009 * 8 < 2**24
