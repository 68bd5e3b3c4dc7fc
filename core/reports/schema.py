"""JSON that others may rely on: every document names its schema and the version of it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bestiary.core.checkpoint.files import finite


class ReportPart(BaseModel):
    """An object within a report; every field says what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JsonReport(BaseModel):
    """A result as it is printed with ``--json``. Subclasses set ``schema_name`` and ``schema_version`` and describe every field.

    A version's fields keep their names, types and units; a field may be added to it, another change makes a new version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: ClassVar[str]
    schema_version: ClassVar[int] = 1

    @classmethod
    def identifier(cls) -> str:
        """What its documents have under ``schema``: ``bestiary.bench.latency/1``."""
        return f"bestiary.{cls.schema_name}/{cls.schema_version}"

    def as_dict(self) -> dict[str, Any]:
        """The document; numbers that are not finite are null."""
        return {"schema": self.identifier(), **finite(self.model_dump(mode="json", by_alias=True))}

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of its documents."""
        made = cls.model_json_schema(mode="serialization")
        made["properties"] = {"schema": {"const": cls.identifier()}, **made.get("properties", {})}
        made["required"] = ["schema", *made.get("required", [])]
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": cls.identifier(), **_nullable(made)}


def _nullable(schema: Any) -> Any:
    """The same schema, where every number may be null: that is how one that is not finite is written."""
    if isinstance(schema, dict):
        made = {key: _nullable(item) for key, item in schema.items()}
        return {**made, "type": ["number", "null"]} if schema.get("type") == "number" else made
    return [_nullable(item) for item in schema] if isinstance(schema, list) else schema
