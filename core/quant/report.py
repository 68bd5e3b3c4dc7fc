"""What ``bestiary quantize`` did."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from bestiary.core.reports.schema import JsonReport


class QuantizeReport(JsonReport):
    """A quantized checkpoint, beside the one that it was made from."""

    schema_name: ClassVar[str] = "quantize"

    checkpoint: str = Field(description="name of the directory that was made")
    model: str = Field(description="name of the model family")
    parameters: int = Field(description="numbers in the model's parameters, a count")
    quantized: dict[str, int] = Field(description="parameters that each method quantized, a count by method")
    kv_dtype: str | None = Field(description="the kind of cache that scales were calibrated for; null: none were")
    plain: int = Field(description="parameters that stayed as they were, a count")
    bytes_before: int = Field(description="bytes of the source's weights")
    bytes: int = Field(description="bytes of the weights now")
