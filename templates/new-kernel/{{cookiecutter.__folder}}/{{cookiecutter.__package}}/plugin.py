"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Kernel, hookimpl
{% if cookiecutter.triton %}
from bestiary.spec import Call, TensorFacts
{% elif cookiecutter.op == 'gated_activation' %}
from bestiary.spec import Call
{% endif %}


{% if cookiecutter.op == 'gated_activation' %}
def supports(call: Call) -> str | None:
    """None for a call that the kernel can run, else the reason why not."""
    return None if call.arguments["kind"] == "silu" else "it knows silu only"


{% endif %}
{% if cookiecutter.triton %}
def triton_supports(call: Call) -> str | None:
    """None for a call that the triton kernel can run, else the reason why not."""
    tensors = {name: value for name, value in call.arguments.items() if isinstance(value, TensorFacts)}
    if call.device != "cuda":
        return "it is for GPUs"
    if not all(facts.contiguous for facts in tensors.values()):
        return "it wants contiguous tensors"
{% if cookiecutter.op == 'gated_activation' %}
    return supports(call)
{% else %}
    return None if tensors["x"].shape[-1] <= 16384 else "its rows have at most 16,384 features"
{% endif %}


{% endif %}
@hookimpl
def bestiary_register_kernels(register: Callable[[Kernel], None]) -> None:
    register(
        Kernel(
            op="{{ cookiecutter.op }}",
            name="{{ cookiecutter.name }}",
            run="{{ cookiecutter.__package }}.kernels:{{ cookiecutter.op }}",
{% if cookiecutter.op == 'gated_activation' %}
            supports=supports,
{% endif %}
        )
    )
{% if cookiecutter.triton %}
    register(
        Kernel(
            op="{{ cookiecutter.op }}",
            name="{{ cookiecutter.name }}_triton",
            run="{{ cookiecutter.__package }}.triton_kernels:{{ cookiecutter.op }}",
            supports=triton_supports,
            requires="triton>=3",
        )
    )
{% endif %}
