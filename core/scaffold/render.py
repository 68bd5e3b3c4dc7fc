"""Questions and files of a template, by cookiecutter, without its user config, its replay files and the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import bestiary
from bestiary.core.checkpoint.transaction import new_directory
from bestiary.core.errors import OutputError, PluginError, UsageError

#: Checks an answer; raises UsageError.
Check = Callable[[str], None]


@dataclass(frozen=True)
class Template:
    """One of ``new-model``, ``new-kernel``, ``new-op``.

    Args:
        path: its folder.
        values: what its cookiecutter.json says, in order; keys without an underscore are questions.
        prompts: the questions' texts.
    """

    path: Path
    values: Mapping[str, Any]
    prompts: Mapping[str, str]

    @classmethod
    def of(cls, kind: str) -> Template:
        """The template for a ``model``, a ``kernel`` or an ``op``."""
        path = Path(bestiary.__file__).parent / "templates" / f"new-{kind}"
        values = json.loads((path / "cookiecutter.json").read_text(encoding="utf-8"))
        return cls(path, values, values.pop("__prompts__"))


def api_range(version: str) -> str:
    """The requirement of a plugin made with this version of the SDK.

    >>> api_range("0.1.4"), api_range("1.3.0")
    ('bestiary>=0.1,<0.2', 'bestiary>=1.3,<2')
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    # Before 1.0 a minor release may break plugins, afterwards a major one.
    return f"bestiary>={major}.{minor},<{major + 1}" if major else f"bestiary>=0.{minor},<0.{minor + 1}"


def answers(template: Template, given: Mapping[str, Any], *, checks: Mapping[str, Check], ask: bool) -> dict[str, Any]:
    """A value for every key of the template: those given, answers or defaults, and what follows from them.

    Args:
        given: by key, never rendered: what came from a file or a user is data.
        checks: of answers, by key.
        ask: ask for what is not given, else take the default.

    Raises:
        UsageError: an answer is refused, or there is nobody to ask.
        PluginError: cookiecutter is missing.
    """
    environment, prompt = _cookiecutter("environment"), _cookiecutter("prompt")
    env = environment.StrictEnvironment(context={"cookiecutter": dict(template.values)}, keep_trailing_newline=True)
    found: dict[str, Any] = {}
    for key, raw in template.values.items():
        if key in given:
            found[key] = _chosen(key, given[key], raw) if isinstance(raw, list) else given[key]
        elif key.startswith("_") and not key.startswith("__"):
            found[key] = raw
        else:
            default = prompt.render_variable(env, raw, found)
            asked = ask and not key.startswith("_")
            found[key] = _ask(prompt, template, key, default) if asked else _first(default)
        if key in checks:
            checks[key](found[key])
    return found


def write(template: Template, values: Mapping[str, Any], target: Path) -> list[str]:
    """Render the template to ``target``, which is absent before and complete after; the files, relative to it.

    Raises:
        OutputError: ``target`` exists.
        PluginError: cookiecutter is missing, or the template does not render.
    """
    generate, exceptions = _cookiecutter("generate"), _cookiecutter("exceptions")
    hint = "choose another name, or remove that folder"
    if target.is_dir():  # an empty one too: somebody made it for something
        raise OutputError("E-OUT-EXISTS", target.name, "exists", hint=hint)
    with new_directory(target, hint=hint) as temporary:
        context = {"cookiecutter": {**values, "__folder": temporary.name}}
        try:
            generate.generate_files(
                str(template.path), context, str(temporary.parent), overwrite_if_exists=True, accept_hooks=False
            )
        except exceptions.CookiecutterException as e:
            raise PluginError("E-NEW-TEMPLATE", template.path.name, f"does not render: {e}") from e
        if values["_in_repository"]:
            shutil.rmtree(temporary / ".github")
            (temporary / ".gitignore").unlink()
        return sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())


def _first(default: Any) -> Any:
    return default[0] if isinstance(default, list) else default


def _chosen(key: str, value: Any, choices: list[Any]) -> Any:
    if value not in choices:
        raise UsageError(
            "E-NEW-ANSWER", key, "is none of the choices", found=repr(value)[:60], expected=", ".join(choices)
        )
    return value


def _ask(prompt: ModuleType, template: Template, key: str, default: Any) -> Any:
    try:
        if isinstance(default, list):
            return prompt.read_user_choice(key, default, template.prompts)
        if isinstance(default, bool):
            return prompt.read_user_yes_no(key, default, template.prompts)
        return prompt.read_user_variable(key, default, template.prompts)
    except EOFError:
        raise UsageError("E-NEW-ANSWER", key, "is not answered: there is nobody to ask") from None


def _cookiecutter(module: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(f"cookiecutter.{module}")
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] != "cookiecutter":
            raise
        raise PluginError("E-NEW-COOKIECUTTER", "cookiecutter", "is not installed, and bestiary new needs it") from None
