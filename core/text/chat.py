"""Chat templates: Jinja in a sandbox, with the helpers that templates of the field expect (transformers' set)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bestiary.core.errors import RequestError
from bestiary.core.text.files import read_json

Message = Mapping[str, Any]


class _Generation(Extension):
    """``{% generation %}`` marks assistant text for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt must not have.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        special_tokens: ``bos_token`` and others that templates name.
        now: the clock behind ``strftime_now``.

    Attributes:
        source: the Jinja text.

    Raises:
        RequestError: the template is not valid Jinja.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda spec: now().strftime(spec)
        self.source, self._special_tokens = source, dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise RequestError("E-REQ-TEMPLATE", "chat template", "not valid Jinja", found=str(error)[:200]) from error

    @classmethod
    def load(cls, directory: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The template of a model directory (chat_template.jinja, else tokenizer_config.json's); None where there is none."""
        path = directory / "chat_template.jinja"
        if path.is_file():
            return cls(path.read_text(encoding="utf-8"), special_tokens)
        found = read_json(directory / "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):
            found = next((each.get("template") for each in found if each.get("name") == "default"), None)
        return cls(found, special_tokens) if isinstance(found, str) else None

    @classmethod
    def find(cls, directories: Sequence[Path], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The template of the first directory that has one."""
        return next((found for each in directories if (found := cls.load(each, special_tokens)) is not None), None)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        Args:
            messages: ``{"role": …, "content": …}`` each.
            add_generation_prompt: end with the header of the assistant's answer.
            tools: JSON schemas of functions the model may call.
            variables: whatever else the template reads.

        Raises:
            RequestError: malformed messages, or the template's own refusal.
        """
        _check(messages)
        try:
            return self._template.render(
                messages=list(messages),
                tools=tools,
                documents=variables.pop("documents", None),
                add_generation_prompt=add_generation_prompt,
                **{**self._special_tokens, **variables},
            )
        except Exception as error:  # a template is foreign code: whatever it raises is the template's failure
            found = f"{type(error).__name__}: {error}"[:200]
            hint = "check the roles and their order"
            raise RequestError("E-REQ-CHAT", "messages", "the chat template failed", found=found, hint=hint) from error


def _check(messages: Sequence[Message]) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        expected = '[{"role": "user", "content": "…"}]'
        raise RequestError(
            "E-REQ-CHAT", "messages", "not a list of messages", found=repr(messages)[:80], expected=expected
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            expected = "a mapping with a role"
            raise RequestError(
                "E-REQ-CHAT", f"messages[{index}]", "not a message", found=repr(message)[:80], expected=expected
            )
        if message.get("content") is None and not message.get("tool_calls"):
            expected = "a content, or tool_calls"
            raise RequestError(
                "E-REQ-CHAT", f"messages[{index}]", "says nothing", found=repr(dict(message))[:80], expected=expected
            )
