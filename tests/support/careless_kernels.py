"""Kernels of the core's ops that overlook an argument, or values that are rare. None is registered."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from bestiary import ops


def norm_without_eps(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    wide = x.float()
    size = wide.square().mean(-1, keepdim=True).clamp(min=1e-30)
    out.copy_(weight * (wide * size.rsqrt()).to(weight.dtype))


def norm_of_a_fixed_eps(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    out.copy_(ops.rms_norm.reference(x, weight, 1e-5))


def norm_of_a_misplaced_eps(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    wide = x.float()
    out.copy_(weight * (wide / (wide.square().mean(-1, keepdim=True).sqrt() + eps)).to(weight.dtype))


def norm_that_divides_by_zero(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    wide = x.float()
    size = wide.square().mean(-1, keepdim=True)
    out.copy_(weight * (wide / size.sqrt() * (size / (size + eps)).sqrt()).to(weight.dtype))


def norm_in_half(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    out.copy_(ops.rms_norm.reference(x.half(), weight, eps))


def route_without_a_shift(
    logits: Tensor, top_k: int, scoring: str, renormalize: bool, scale: float, *, out: tuple[Tensor, Tensor]
) -> None:
    weights, experts = ops.moe_route.reference(logits, top_k, scoring, renormalize, scale)
    scores = logits.float().exp() / logits.float().exp().sum(-1, keepdim=True)
    if scoring == "softmax":
        weights = scores.gather(-1, experts.long())
        weights = scale * (weights / weights.sum(-1, keepdim=True) if renormalize else weights)
    out[0].copy_(weights)
    out[1].copy_(experts)


def route_that_always_renormalizes(
    logits: Tensor, top_k: int, scoring: str, renormalize: bool, scale: float, *, out: tuple[Tensor, Tensor]
) -> None:
    for one, made in zip(
        out, ops.moe_route.reference(logits, top_k, scoring, renormalize or scoring == "sigmoid", scale), strict=True
    ):
        one.copy_(made)


def attention_of_its_own_scale(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, query_starts: Tensor, kv_lengths: Tensor,
    scale: float, window: int | None, *, out: Tensor,
) -> None:  # fmt: skip
    out.copy_(
        ops.paged_attention.reference(
            q, k_cache, v_cache, block_tables, query_starts, kv_lengths, q.shape[-1] ** -0.5, window
        )
    )


def _attention(wrong: Callable[[Tensor, Tensor, Tensor, int | None], bool]) -> Callable[..., None]:
    """Attention that is zeros where it says so of the cache, the starts of the queries, the lengths and the window."""

    def paged_attention(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, query_starts: Tensor, kv_lengths: Tensor,
        scale: float, window: int | None, *, out: Tensor,
    ) -> None:  # fmt: skip
        args = q, k_cache, v_cache, block_tables, query_starts, kv_lengths, scale, window
        out.copy_(ops.paged_attention.reference(*args))
        if kv_lengths.numel() and wrong(k_cache, query_starts, kv_lengths, window):
            out.zero_()

    return paged_attention


attention_of_one_tile_of_keys = _attention(lambda cache, starts, lengths, window: int(lengths.max()) > 128)
attention_of_one_tile_of_queries = _attention(lambda cache, starts, lengths, window: int(starts.diff().max()) > 64)
attention_in_blocks_of_four = _attention(lambda cache, starts, lengths, window: cache.shape[1] != 4)
attention_in_no_blocks_of_one = _attention(lambda cache, starts, lengths, window: cache.shape[1] == 1)
attention_of_a_short_window = _attention(lambda cache, starts, lengths, window: (window or 0) > 64)


def norm_of_a_narrow_model(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    out.copy_(ops.rms_norm.reference(x, weight, eps))
    out[..., 2048:] = 0


def product_of_few_features(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    out.copy_(ops.linear.reference(x[..., :2048], weight[:, :2048], bias))


def product_into_few_features(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    out.copy_(ops.linear.reference(x, weight, bias))
    out[..., 512:] = 0


def product_of_a_tail(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> None:
    """Nothing, where the rows are whole tiles."""
    out.copy_(ops.linear.reference(x, weight, bias))
    if len(x) and len(x) % 64 == 0:
        out.zero_()
