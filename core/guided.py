"""What a guided answer must match: one grammar, in one of the forms that backends compile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bestiary.core.checkpoint.files import parse_json
from bestiary.core.errors import RequestError
from bestiary.core.sampling_checks import choices, refuse

__all__ = ["Guided"]

MAX_BYTES: Final = 1 << 18
FORMS: Final = ("json_schema", "regex", "grammar", "choice", "spec")


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Exactly one of the forms, and which backend compiles it.

    Args:
        json_schema: the answer is JSON that the schema admits. A mapping, or its JSON text; kept as text.
        regex: the whole answer matches this regular expression, in the backend's dialect.
        grammar: the whole answer is a sentence of this grammar, in the backend's notation.
        choice: the answer is one of these strings, from 1 to 1024 of them.
        spec: text in a form of the backend's own; needs ``provider``.
        provider: name of a registered ``Grammar``; without it the engine takes the one that names the form in its
            ``forms``.

    Each text has at most 2**18 bytes of UTF-8.

    Raises:
        RequestError: ``E-REQ-GUIDED``, with what is wrong.
    """

    json_schema: str | Mapping[str, object] | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None
    spec: str | None = None
    provider: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise _refuse("not exactly one form", " and ".join(given) or "none", "one of " + ", ".join(FORMS))
        if self.provider is None and self.spec is not None:
            raise _refuse("spec needs a provider", "none", "the name of a registered grammar backend")
        if self.provider is not None and not (isinstance(self.provider, str) and self.provider.strip()):
            raise _refuse("provider is not a name", self.provider, "the name of a registered grammar backend")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _schema_text(self.json_schema))
        elif self.choice is not None:
            object.__setattr__(self, "choice", choices(self.choice))
        for text in self.text if isinstance(self.text, tuple) else (self.text,):
            _bounded(self.form, text)

    @property
    def form(self) -> str:
        """Which one was given: ``"json_schema"``, ``"regex"``, ``"grammar"``, ``"choice"`` or ``"spec"``."""
        return next(name for name in FORMS if getattr(self, name) is not None)

    @property
    def text(self) -> str | tuple[str, ...]:
        """What was given: the JSON text, expression, grammar or spec; of ``choice`` all strings."""
        value: str | tuple[str, ...] = getattr(self, self.form)
        return value


def _schema_text(schema: object) -> str:
    if isinstance(schema, Mapping):
        try:
            return json.dumps(schema, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise _refuse(f"json_schema is not JSON: {error!s:.80}", type(schema).__name__, "a JSON Schema") from None
    if not isinstance(schema, str):
        raise _refuse("json_schema is not a schema", schema, "a mapping, or JSON text")
    _bounded("json_schema", schema)
    try:
        found = parse_json(schema.encode("utf-8"), "json_schema", error=RequestError)
    except RequestError as error:
        raise _refuse(f"json_schema {error.problem:.120}", error.found or schema, "a JSON Schema") from None
    if not isinstance(found, dict | bool):
        raise _refuse("json_schema is not a schema", schema, "a JSON object, true or false")
    return schema


def _bounded(form: str, text: object) -> None:
    """Refuse what is no string, not Unicode, empty or too long."""
    if not isinstance(text, str):
        raise _refuse(f"{form} is not a string", text, "a string")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise _refuse(f"{form} is not valid Unicode", text, "text that UTF-8 can write") from None
    if not 1 <= size <= MAX_BYTES:
        raise _refuse(f"{form} of the wrong length", f"{size} bytes", f"1 to {MAX_BYTES} bytes")


def _refuse(problem: str, found: object, expected: str) -> RequestError:
    return refuse("guided", problem, found, expected)
