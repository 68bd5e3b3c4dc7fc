"""Batch-invariant kernels, bit for bit: a row alone, in batches of many sizes and at many places, on one thread and two."""

import random

import pytest
import torch

from bestiary.core.config import Rope
from bestiary.core.kernels.invariant import ACTIVATIONS
from bestiary.core.kernels.invariant_attention import SPLIT
from bestiary.core.ops.activation import ACTIVATIONS as DECLARED
from bestiary.core.program.calls import load_kernel, load_op
from bestiary.testing import load_plugins

HOST = load_plugins()
ROWS = 150
SLICES = [
    slice(0, 1),
    slice(1, 2),
    slice(77, 78),
    slice(0, 3),
    slice(5, 13),
    slice(140, 150),
    slice(33, 98),
    slice(0, 150),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DYNAMIC = Rope(kind="dynamic", theta=10000.0, factor=2.0, original_max_position=16)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def kernel(op, name=None):
    """A kernel of an op as a function that returns its result: the one named, else the batch-invariant one."""
    op, _, chosen = op.partition("=")
    name = name or chosen or ("invariant" if op in ("linear", "moe") else None)
    found = [k for k in HOST.kernels(op) if (k.batch_invariant if name is None else k.name == name)]
    assert len(found) == 1
    declaration = load_op(op, HOST)
    run = load_kernel(found[0], declaration)

    def call(*args):
        made = declaration.fake(*args)
        outs = tuple(
            torch.full_like(m, torch.nan if m.is_floating_point() else -1)
            for m in (made if isinstance(made, tuple) else (made,))
        )
        run(*args, out=outs if len(outs) > 1 else outs[0])
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    return call


def rows_of(args, which):
    """The arguments of some rows only: tensors of ROWS rows are cut, all else is the same for every row."""
    return [a[which] if isinstance(a, torch.Tensor) and len(a) == ROWS else a for a in args]


def cases(op, dtype, size):
    """Arguments for ROWS rows of about ``size`` features; activations as slices of a wider tensor, as builds lay them."""

    def made(*shape):
        return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 3).to(dtype)

    def part(*shape):
        return made(*shape[:-1], shape[-1] + 5)[..., : shape[-1]]

    def experts(count):
        matrices = [made(5, *shape) / 9 for shape in ((size, 24), (size, 24), (24, size))]
        chosen = torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(count)).argsort(1)[:, :count]
        return [part(ROWS, 24) / 9, made(ROWS, count).float(), chosen.int(), *matrices, "silu"]

    positions, table = torch.randperm(ROWS) * 17, torch.randn(ROWS, 2 * (size // 2))
    heads = part(ROWS, 3, 2 * (size // 2) + 1)
    lengths = positions + 1
    return {
        "linear": [[part(ROWS, size), made(2 * size + 1, size), b] for b in (None, made(2 * size + 1))],
        "logits": [[made(ROWS, size), made(2 * size + 1, size)]],
        "rms_norm": [[part(ROWS, size), made(size), 1e-5], [part(ROWS, 3, size), made(size), 1e-5]],
        "add_rms_norm": [[part(ROWS, size), made(ROWS, size), made(size), 1e-5]],
        "moe": [experts(count) for count in (1, 3)],
        "moe_route": [[made(ROWS, size), 5, s, r, 1.5] for s in ("softmax", "sigmoid") for r in (True, False)],
        "sigmoid_gate": [[part(ROWS, size), made(ROWS, 1).float()]],
        "gated_activation": [[*made(ROWS, 2 * size).chunk(2, -1), kind] for kind in ACTIVATIONS],
        "add": [[part(ROWS, size), made(ROWS, size)]],
        "mul": [[part(ROWS, size), made(ROWS, size)]],
        "rope": [[heads, table]],
        "rotary_table": [[positions, lengths, rope, 2 * (size // 2)] for rope in (Rope(), DYNAMIC)],
        "embedding": [[positions, made(17 * ROWS, size)]],
    }[op.partition("=")[0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["linear", "linear=invariant_widened", "logits", "rms_norm", "add_rms_norm",
                                "gated_activation", "moe", "moe=invariant_widened", "moe_route", "sigmoid_gate", "add", "mul", "rope", "rotary_table", "embedding"])  # fmt: skip
def test_a_row_alone_is_the_row_in_any_batch(op, dtype, threads):
    run = kernel(op)
    for size in (5, 49, 576):
        for args in cases(op, dtype, size):
            torch.set_num_threads(1)
            whole = run(*args)
            torch.set_num_threads(threads)
            assert whole.isfinite().all()
            order = torch.tensor(random.Random(size).sample(range(ROWS), ROWS))
            for which in (*SLICES, order, order[:21]):
                assert torch.equal(run(*rows_of(args, which)), whole[which]), f"{size} features, rows {which}"


def test_a_broken_row_leaves_the_others_alone():
    for op in ("linear", "logits", "add_rms_norm"):
        (args, *_) = cases(op, torch.float32, 49)
        run = kernel(op)
        whole = run(*args)
        args[0] = args[0].clone()
        args[0][::3] = torch.nan
        kept = [row for row in range(ROWS) if row % 3]
        assert torch.equal(run(*args)[kept], whole[kept])


def test_every_activation_has_its_invariant_form():
    assert ACTIVATIONS.keys() == DECLARED.keys()


def test_the_ordinary_kernels_fail_the_same_test():
    differ = set()
    for op in ("linear", "logits", "gated_activation"):
        run = kernel(op, "torch")
        for args in cases(op, torch.float32, 49):
            if not all(torch.equal(run(*rows_of(args, which)), run(*args)[which]) for which in SLICES):
                differ.add(op)
    assert differ == {"linear", "logits", "gated_activation"}


HEADS, KV_HEADS, SIZE, VALUE = 6, 2, 13, 9
LENGTHS = [1, 5, SPLIT, SPLIT + 1, 300, 2 * SPLIT + 3]


class Sequences:
    """Keys, values and queries of sequences, and a paged cache that holds them among NaN."""

    def __init__(self, dtype, block_size, seed=0):
        generator = torch.Generator().manual_seed(1)
        self.q, self.k, self.v = (
            [torch.randn(n, heads, size, generator=generator).to(dtype) for n in LENGTHS]
            for heads, size in ((HEADS, SIZE), (KV_HEADS, SIZE), (KV_HEADS, VALUE))
        )
        self.block_size, width = block_size, -(-max(LENGTHS) // block_size) + 3
        blocks = random.Random(seed).sample(range(width * len(LENGTHS)), width * len(LENGTHS))
        self.tables = torch.tensor(blocks, dtype=torch.int32).view(len(LENGTHS), width)
        self.k_cache, self.v_cache = (
            torch.full((len(blocks) + 1, block_size, KV_HEADS, size), torch.nan, dtype=dtype) for size in (SIZE, VALUE)
        )

    def write(self, n, upto, oldest=0):
        """Only the positions given are in the cache; what the sequence's other slots hold is NaN."""
        self.k_cache[self.tables[n].long()], self.v_cache[self.tables[n].long()] = torch.nan, torch.nan
        for position in range(oldest, upto):
            block, place = self.tables[n, position // self.block_size], position % self.block_size
            self.k_cache[block, place], self.v_cache[block, place] = self.k[n][position], self.v[n][position]

    def attend(self, run, segments, window):
        """One step: (sequence, first position, count) each → ``[T, H, E]``."""
        for n, start, count in segments:
            self.write(n, start + count, 0 if window is None else max(0, start - window + 1))
        starts = torch.tensor([0, *(count for _, _, count in segments)]).cumsum(0).int()
        lengths = torch.tensor([start + count for _, start, count in segments], dtype=torch.int32)
        q = torch.cat([self.q[n][start : start + count] for n, start, count in segments])
        tables = self.tables[[n for n, _, _ in segments]]
        return run(q, self.k_cache, self.v_cache, tables, starts, lengths, SIZE**-0.5, window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 70])
def test_attention_knows_neither_chunks_nor_blocks_nor_neighbours(dtype, window, threads):
    run = kernel("paged_attention")
    cached = Sequences(dtype, 16)
    whole = [cached.attend(run, [(n, 0, length)], window) for n, length in enumerate(LENGTHS)]
    assert all(made.isfinite().all() for made in whole)
    together = cached.attend(run, [(n, 0, length) for n, length in enumerate(LENGTHS)], window)
    assert torch.equal(together, torch.cat(whole))
    for block_size, chunk in ((16, 1), (4, 7), (32, 64), (5, 299)):
        placed = Sequences(dtype, block_size, seed=chunk)
        for n, length in enumerate(LENGTHS):
            # A decode in steps of one needs only some of the positions.
            begins = range(0, length, chunk) if chunk > 1 else sorted({0, length // 2, max(0, length - 2), length - 1})
            for start in begins:
                count = min(chunk, length - start)
                other = ((n + 1) % len(LENGTHS), 0, 3) if LENGTHS[(n + 1) % len(LENGTHS)] > 3 else None
                segments = [s for s in ((n, start, count), other) if s]
                found = placed.attend(run, segments if start % 2 else segments[::-1], window)
                found = found[:count] if start % 2 or not other else found[3:]
                assert torch.equal(found, whole[n][start : start + count]), f"{length} tokens, chunk {start}+{count}"


def test_ordinary_attention_fails_the_same_test():
    cached = Sequences(torch.float32, 16)
    run = kernel("paged_attention", "torch")
    whole = cached.attend(run, [(4, 0, LENGTHS[4])], None)
    decoded = [cached.attend(run, [(4, position, 1)], None) for position in (17, 150, 299)]
    assert not torch.equal(torch.cat(decoded), whole[[17, 150, 299]])
