"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Model, hookimpl

ARCHITECTURES = {"qwen2": "Qwen2", "qwen2_moe": "Qwen2Moe", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    for name, title in ARCHITECTURES.items():
        package = f"bestiary_qwen.{name}"
        register(
            Model(
                name=name,
                architectures=(f"{title}ForCausalLM",),
                gguf=(name.replace("_", ""),),
                config=f"{package}.config:{title}Config",
                gguf_config=f"{package}.convert:gguf_config",
                model=f"{package}.model:{title}",
                weights={"hf": f"{package}.convert:HF", "gguf": f"{package}.convert:GGUF"},
                conformance=f"{package}.conformance:{title}Conformance",
            )
        )
