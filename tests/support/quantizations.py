"""Quantization methods that state a bound, or none; a test stands in for the build that would apply them."""

from collections.abc import Callable
from types import SimpleNamespace

from bestiary import hookimpl
from bestiary.spec import Quantization

BOUNDS = {"generous": 0.5, "strict": 1e-4, "boundless": None, "negative": -1.0}
METHODS = {name: SimpleNamespace(bound=bound) for name, bound in BOUNDS.items()}
generous, strict, boundless, negative = METHODS.values()


@hookimpl
def bestiary_register_quantizations(register: Callable[[Quantization], None]) -> None:
    for name in BOUNDS:
        register(Quantization(name=name, method=f"{__name__}:{name}"))
