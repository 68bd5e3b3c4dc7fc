"""Import strings: ``"module:attribute"`` to the object, when it is first used."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from bestiary.core.errors import PluginError, said

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(text: str) -> bool:
    """Whether ``text`` has the form ``module:attribute``; dotted on both sides.

    >>> is_reference("bestiary_llama.model:Llama"), is_reference("bestiary_llama.model.Llama")
    (True, False)
    """
    return _REFERENCE.fullmatch(text) is not None


def resolve(reference: str, *, needed_by: str) -> Any:
    """Import the object that ``module:attribute`` names.

    Args:
        reference: the import string of a descriptor.
        needed_by: what it is for, as the subject of an error: ``"model llama"``.

    Raises:
        PluginError: the string is malformed, the import fails (whatever it raises but Ctrl-C), or the attribute is
            missing.
    """
    if not is_reference(reference):
        raise PluginError(
            "E-PLG-REFERENCE", needed_by, "not an import string", found=repr(reference), expected="'module:attribute'"
        )
    module_name, _, path = reference.partition(":")
    try:
        value: Any = import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise PluginError(
            "E-PLG-IMPORT", needed_by, f"importing {module_name} failed", found=describe(error), hint=_advice(error)
        ) from error
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError as error:
            problem = f"{module_name} has no attribute {path!r}"
            raise PluginError("E-PLG-ATTRIBUTE", needed_by, problem, hint="the import string is misspelt") from error
    return value


def describe(error: BaseException) -> str:
    """The exception's class and its first line, at most 300 characters; it can be printed, whatever was raised.

    >>> describe(ImportError("no"))
    'ImportError: no'
    """
    lines = said(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


def _advice(error: BaseException) -> str | None:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"is the package that brings {error.name.partition('.')[0]!r} installed?"
    return None
