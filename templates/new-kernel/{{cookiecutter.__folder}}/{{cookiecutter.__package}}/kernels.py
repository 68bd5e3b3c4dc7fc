"""{{ cookiecutter.op }} in torch, a start that works: make it faster, and the tests keep it right."""

{% if cookiecutter.op == 'add_rms_norm' %}
import torch
{% endif %}
from torch import Tensor
from torch.nn import functional


{% if cookiecutter.op == 'rms_norm' %}
def rms_norm(x: Tensor, weight: Tensor, eps: float, *, out: Tensor) -> None:
    """``x / √(mean(x²) + eps) · weight`` over the last axis: x ``[…, F]``, weight ``[F]``, out ``[…, F]``."""
    out.copy_(functional.rms_norm(x.float(), x.shape[-1:], weight.float(), eps))
{% elif cookiecutter.op == 'add_rms_norm' %}
def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, *, out: tuple[Tensor, Tensor]) -> None:
    """``(rms_norm(x + y), x + y)``: x, y ``[T, F]``, weight ``[F]``; the norm in the weight's dtype."""
    normed, total = out
    torch.add(x, y, out=total)
    normed.copy_(functional.rms_norm(total.float(), total.shape[-1:], weight.float(), eps))
{% else %}
def gated_activation(gate: Tensor, up: Tensor, kind: str, *, out: Tensor) -> None:
    """``silu(gate) · up``, computed in fp32: gate, up, out ``[T, F]``."""
    out.copy_(functional.silu(gate.float()).mul_(up.float()))
{% endif %}
