"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Model, hookimpl


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="llama",
            architectures=("LlamaForCausalLM",),
            gguf=("llama",),
            config="bestiary_llama.config:LlamaConfig",
            gguf_config="bestiary_llama.convert:gguf_config",
            model="bestiary_llama.model:Llama",
            weights={"hf": "bestiary_llama.convert:HF", "gguf": "bestiary_llama.convert:GGUF"},
            conformance="bestiary_llama.conformance:LlamaConformance",
        )
    )
