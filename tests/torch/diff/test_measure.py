"""Errors, allowances, prompts, patterns and verdicts on numbers made for them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from bestiary.core.diff.bisect import Outcome, Variant
from bestiary.core.diff.compare import Comparison, Prompt, Reading, Row
from bestiary.core.diff.measure import Allowance, Error, Scale, scales
from bestiary.core.diff.patterns import Case, patterns
from bestiary.core.diff.verdict import judge
from bestiary.core.plugins import PluginHost
from bestiary.core.sides.side import Made
from bestiary.core.version import __version__

T = torch.tensor


def test_errors():
    error = Error.of(T([3.0, 4.5]), T([3.0, 4.0]))
    assert (error.largest, error.relative, error.scale) == (0.5, 0.1, 4.0)
    assert error.cosine == pytest.approx((9 + 18) / (29.25**0.5 * 5))
    assert Error.of(T([2.0]), T([1.0, 2.0])).relative == math.inf
    assert Error.of(T([math.nan, 1.0]), T([0.0, 1.0])).relative == math.inf
    assert Error.of(T([math.nan, -math.inf, 1.0]), T([math.nan, -math.inf, 1.0])).relative == 0
    assert Error.of(T([math.inf]), T([-math.inf])).relative == math.inf
    assert Error.of(T([0.0]), T([0.0])) == Error(0, 0, 1, 0, 0)
    rows = Error.of(T([[1.0, 1.1], [2.0, 0.0], [3.0, 3.0]]), T([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    assert rows.typical == pytest.approx(0.1 / 2**0.5) and rows.relative > 0.3  # one row is far off
    assert Error.of(T([1.0]), T([0.0])).relative == math.inf


def test_an_allowance_holds_the_norm_and_each_number():
    wanted = torch.ones(10_000)
    allowed = Allowance(2.0, 1e-3, Error(1e-3, 1e-3, 1.0, 1.0))
    assert allowed.relative == pytest.approx(4e-3)
    assert allowed.excess(Error.of(wanted * 1.002, wanted)) == pytest.approx(0.5, rel=1e-3)
    one = wanted.clone()
    one[7] = 1.1  # hardly anything of the norm
    assert allowed.excess(Error.of(one, wanted)) == pytest.approx(0.1 / 4e-3, rel=1e-3)
    assert allowed.excess(Error.of(wanted, wanted)) == 0


PARTS = {"prefill": slice(0, 16), "decode": slice(16, 20)}
TENSOR = torch.randn(20, 32, generator=torch.Generator().manual_seed(5))


def test_a_scale_is_told_from_roundings():
    allowed = Allowance(2.0, 2**-7, Error(2**-7, 2**-7, 1.0, 1.0))
    rounded = TENSOR.bfloat16().float()
    for one in scales(rounded, TENSOR, PARTS).values():
        assert allowed.scale_excess(one) < 0.3 and 1 < one.share * 32**0.5 < 1.6
    assert allowed.fits(rounded, TENSOR, PARTS)
    found = scales(rounded * 1.01, TENSOR, PARTS)
    assert all(one.factor == pytest.approx(1.01, abs=1e-3) for one in found.values())
    assert allowed.excess(Error.of(rounded * 1.01, TENSOR)) < 1 < allowed.scale_excess(found["prefill"])
    assert not allowed.fits(rounded * 1.01, TENSOR, PARTS)
    # One feature that is all of it: rounding may move it as far as it rounds.
    alone = torch.cat((TENSOR * 1e-3, torch.ones(20, 1)), 1)
    assert scales(alone * 1.003, alone, PARTS)["prefill"].share > 0.9 and allowed.fits(alone * 1.003, alone, PARTS)


def test_of_what_a_scale_is_not_told():
    assert scales(TENSOR[:9] * 2, TENSOR[:9], {"all": slice(None)})["all"].scatter == math.inf  # too few tokens
    unlike = {**dict.fromkeys(PARTS, Scale())}
    assert scales(TENSOR[:, :4], TENSOR, PARTS) == unlike
    assert scales(TENSOR / 0, TENSOR, PARTS) == unlike
    assert scales(torch.zeros(20, 4), torch.zeros(20, 4), PARTS) == unlike
    assert Allowance(2.0, 1e-3, Error(0, 0, 1)).scale_excess(Scale()) == 0
    # Tokens with factors of their own say how far their mean may be off.
    own = torch.linspace(0.9, 1.13, 20)[:, None]
    assert scales(TENSOR * own, TENSOR, PARTS)["prefill"].scatter > 0.05


@pytest.mark.parametrize(
    ("count", "longest", "chunks", "decodes"),
    [(1, 64, (1,), 0), (2, 64, (1, 1), 1), (5, 64, (1, 1, 1, 1, 1), 4), (20, 64, (16, 1, 1, 1, 1), 4), (140, 64, (64, 64, 8, 1, 1, 1, 1), 4)],
)  # fmt: skip
def test_prompts_end_in_decodes(count, longest, chunks, decodes):
    prompt = Prompt.of(range(count), longest)
    assert prompt.chunks == chunks and sum(chunks) == count
    part = prompt.parts.get("decode")
    assert (count - part.start if part else 0) == decodes
    assert prompt.parts["prefill"] == slice(0, count - decodes)


WANTED = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(8, generator=torch.Generator().manual_seed(1))


def looks(found, wanted=WANTED, others=None, weights=None, ours=None):
    prompt = Prompt.of(range(12), 64)

    def fits(one, other):
        return bool(Error.of(one, other).relative < 1e-5)

    return [
        one.text for one in patterns(Case("x", found, wanted, fits, others or {}, ours or {}, weights or {}, prompt))
    ]


def with_rows(rows, value):
    made = WANTED.clone()
    made[rows] = value
    return made


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (WANTED * 0.5, "all of it is 0.5 times the reference"),
        (WANTED * torch.linspace(1, 2, 12)[:, None], "each row is a multiple of the reference's, by 1 to 2"),
        (WANTED * torch.linspace(1, 2, 8), "each feature is a multiple of the reference's, the same at every token"),
        (WANTED - BIAS, "the same vector is missing at every token, as a bias would be (at most 1.52)"),
        (torch.zeros(12, 8), "all of it is zero: nothing was written"),
        (with_rows(slice(3, 5), 0.0), "2 of 12 rows are zero"),
        (with_rows(slice(8, 12), 7.0), "wrong in decodes only: a step of one token has another kernel, or reads the cache wrongly"),
        (with_rows(slice(0, 8), 7.0), "wrong in steps of many tokens only; decodes are right"),
        (with_rows(slice(6, 12), 7.0), "right up to token 5, wrong from token 6 on"),
        (with_rows(4, 7.0), "wrong at 1 of 12 tokens, the first of them 4"),
        (with_rows(4, math.nan), "8 of 96 numbers are NaN"),
        (with_rows(4, math.inf), "8 of 96 numbers are infinite or NaN"),
        (WANTED.roll(1, 0), "rows are shifted by -1: each token has what belongs to its neighbour"),
        (WANTED[:, [0, 2, 4, 6, 1, 3, 5, 7]], "the features of each head are interleaved otherwise: halves where pairs are wanted"),
        (WANTED[:, [0, 4, 1, 5, 2, 6, 3, 7]], "the features of each head are interleaved otherwise: pairs where halves are wanted"),
        (WANTED.flip(1), "each row has the reference's numbers in another order: features are permuted"),
        (WANTED.bfloat16().float(), "all numbers have the digits of bfloat16 only: something is computed in it"),
    ],
)  # fmt: skip
def test_patterns(found, text):
    assert text in looks(found)


def test_patterns_that_other_tensors_explain():
    other = torch.randn(12, 8, generator=torch.Generator().manual_seed(2))
    both = {"x": WANTED, "y": other}
    assert "it is the reference's y, which ours is not: weights are exchanged" in looks(
        other, others=both, ours={"x": other, "y": WANTED}
    )
    assert "it is the reference's y, which ours is, too: what is done with it differs" in looks(
        other, others=both, ours={"x": other, "y": other}
    )
    biased = looks(WANTED - BIAS, weights={"bias": BIAS, "weight": torch.ones(8, 8)})
    assert "the bias is missing: the same vector at every token, and it is the reference's" in biased
    assert "the bias is added twice: the same vector at every token, and it is the reference's" in looks(
        WANTED + BIAS, weights={"bias": BIAS}
    )
    assert "it has another size" in looks(WANTED[:, :4])[0]


def test_nothing_is_told_of_what_is_merely_wrong():
    assert looks(torch.randn(12, 8, generator=torch.Generator().manual_seed(3))) == []


def row(excess: float, accumulated: float = 0.0, name: str = "layers.0.mlp") -> Row:
    allowed = Allowance(1.0, 0.5, Error(0.5, 0.5, 1.0, 1.0, 0.5))
    there = Error(0, accumulated, 1.0, 1.0, typical=accumulated)
    reading = Reading(Error(0, excess, 1.0, 1.0), there, allowed, allowed)
    return Row(name, 0, "mlp", {"prefill": reading}, {"prefill": Made("linear", "torch", "layers.0.mlp")})


class Host:
    """Has a name for all that is asked for."""

    def __getattr__(self, name):
        return (lambda *args: ()) if name == "fusions" else lambda *args: "somebody 1.0"


class Ours:
    host = Host()

    class manifest:
        class checkpoint:
            model = "some"


def verdict(*gone: Variant, rows=None):
    outcomes = [Outcome(one, 0.5) for one in gone] + [Outcome(Variant("fusion", "other"), 30.0, "layers.0.mlp")]
    return judge(Comparison(rows or [row(30.0)]), outcomes, [], Ours(), None)  # type: ignore[arg-type]


def test_verdicts():
    reference, wide = Variant("reference", "*"), Variant("accumulation", "*=widened")
    wider = Variant("dtype", "float32")
    assert verdict(Variant("kernel", "linear=reference"), wide, wider, reference).blame == "kernel"
    both = verdict(reference, wider)
    assert (both.blame, both.text) == (
        "options", "kernels or fusions together: with all references it is gone, and also dtype float32",
    )  # fmt: skip
    assert verdict(wide, wider).text == "16-bit sums of linear=torch: with sums in float32 it is gone"
    assert verdict(wider).text == "rounding: in float32 it is gone"
    assert verdict().blame == "models"
    unable = judge(
        Comparison([row(30.0)]),
        [Outcome(reference, None, problem="no memory")],
        [],
        Ours(),
        None,  # type: ignore[arg-type]
    )
    assert (unable.blame, unable.text.endswith("it can't run here: no memory")) == ("undecided", True)
    fine = row(0.5, 0.5, "embed")
    assert verdict(rows=[fine]).blame == "nothing"
    # Errors along the way that the logits do not show are nobody's matter; an expert may be chosen by a hair.
    assert verdict(rows=[row(0.5, 9.0), fine]).blame == "nothing"
    added = verdict(rows=[fine, row(0.5, 9.0), row(0.5, 9.0, "logits")])
    assert added.blame == "sum" and "from layers.0.mlp on" in added.text


@pytest.mark.parametrize("name", ["rotary_cache", "residual_norm", "gated_product"])
def test_of_all_fusions_the_one_is_named_without_which_it_is_gone(name):
    host = PluginHost.load(plugins=["planted_fusion"])
    assert {one.name for one in host.fusions()} >= {"rotary_cache", "residual_norm", "gated_product"}
    outcomes = [Outcome(Variant("fusion", one.name), 0.5 if one.name == name else 9.0) for one in host.fusions()]
    said = judge(Comparison([row(30.0)]), outcomes, [], SimpleNamespace(host=host), None)  # type: ignore[arg-type]
    whose = "planted_fusion unversioned" if name == "gated_product" else f"bestiary {__version__}"
    assert (said.text, said.distribution) == (f"fusion {name} of {whose}", whose)
