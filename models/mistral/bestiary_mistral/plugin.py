"""Registration; imports nothing but bestiary."""

from collections.abc import Callable

from bestiary import Model, hookimpl


@hookimpl
def bestiary_register_models(register: Callable[[Model], None]) -> None:
    register(
        Model(
            name="mistral",
            architectures=("MistralForCausalLM",),
            gguf=("mistral3",),
            config="bestiary_mistral.mistral.config:MistralConfig",
            gguf_config="bestiary_mistral.mistral.convert:gguf_config",
            model="bestiary_mistral.mistral.model:Mistral",
            weights={"hf": "bestiary_mistral.mistral.convert:HF", "gguf": "bestiary_mistral.mistral.convert:GGUF"},
            conformance="bestiary_mistral.mistral.conformance:MistralConformance",
        )
    )
    register(
        Model(
            name="ministral",
            architectures=("MinistralForCausalLM",),
            config="bestiary_mistral.ministral.config:MinistralConfig",
            model="bestiary_mistral.ministral.model:Ministral",
            weights={"hf": "bestiary_mistral.ministral.convert:HF"},
            conformance="bestiary_mistral.ministral.conformance:MinistralConformance",
        )
    )
    register(
        Model(
            name="mixtral",
            architectures=("MixtralForCausalLM",),
            gguf=("llama+experts",),
            config="bestiary_mistral.mixtral.config:MixtralConfig",
            gguf_config="bestiary_mistral.mixtral.convert:gguf_config",
            model="bestiary_mistral.mixtral.model:Mixtral",
            weights={"hf": "bestiary_mistral.mixtral.convert:HF", "gguf": "bestiary_mistral.mixtral.convert:GGUF"},
            conformance="bestiary_mistral.mixtral.conformance:MixtralConformance",
        )
    )
