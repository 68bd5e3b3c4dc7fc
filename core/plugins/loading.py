"""Load one plugin: import it in a guard, check its hooks, call them one by one. All of it counts, or nothing."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar
from typing import Any, TextIO

import pluggy

from bestiary import hookspecs
from bestiary.core.errors import PluginError
from bestiary.core.plugins.discover import Candidate
from bestiary.core.plugins.kinds import BY_HOOK, Kind, frozen, problem_with
from bestiary.core.plugins.resolve import describe

log = logging.getLogger("bestiary.plugins")
PREFIX = "bestiary_"
#: What takes longer is named while it runs; a hook, which has only descriptors to register, is also told afterwards.
SLOW_IMPORT_SECONDS = 10.0
SLOW_HOOK_SECONDS = 1.0
#: How long a thread waits for another that is loading a plugin.
WAIT_SECONDS = 120.0

Staged = list[tuple[Kind, Any]]

# Which plugin is being loaded in this context; a hook that asks for another host would recurse without end.
_loading: ContextVar[str | None] = ContextVar("bestiary_loading", default=None)


class _Turn:
    """One plugin is loaded at a time. A hook whose own thread loads plugins would else start threads without end."""

    def __init__(self) -> None:
        self._lock, self._holder = threading.Lock(), ""

    @contextmanager
    def of(self, candidate: Candidate) -> Iterator[None]:
        """Hold the turn while a plugin is loaded. Raises PluginError where another thread does not let go of it."""
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            problem = f"another thread has been loading {self._holder} for {WAIT_SECONDS:.0f} s"
            hint = "load hosts outside of imports and hooks; BESTIARY_PLUGINS=NAME,NAME leaves a plugin out"
            raise error(candidate, "E-PLG-REENTRY", problem, hint)
        try:
            self._holder = _label(candidate)
            yield
        finally:
            self._lock.release()


# An import is the process's anyway, so engines do not fight over this.
turn = _Turn()


def refuse_reentry() -> None:
    """Raises PluginError where a plugin's import or hook asks for a plugin host."""
    if (name := _loading.get()) is not None:
        problem = "a plugin host was asked for while this plugin was being loaded"
        raise PluginError("E-PLG-REENTRY", name, problem, hint="load hosts outside of imports and hooks")


def load(candidate: Candidate) -> Staged:
    """Everything the plugin registers, in order, each descriptor checked and frozen.

    Raises:
        PluginError: the import, a hook or a descriptor failed; the cause is chained.
        KeyboardInterrupt: as it came. Who raised it can't be told, and swallowing the user's would be worse than
            passing on a plugin's; the log names the plugin.
    """
    token = _loading.set(_label(candidate))
    try:
        with _streams_kept(), _descriptor_kept():
            return _staged(candidate)
    finally:
        _loading.reset(token)


def _staged(candidate: Candidate) -> Staged:
    with _guard(candidate, f"importing {candidate.module}"), _watch(candidate, "importing", SLOW_IMPORT_SECONDS):
        plugin = candidate.load()
    manager = _validated(candidate, plugin)
    staged: Staged = []
    for caller in manager.get_hookcallers(plugin) or ():
        if caller.name in BY_HOOK:
            staged += _call(candidate, caller, BY_HOOK[caller.name])
    _refuse_repeats(candidate, staged)
    return staged


class _Lent:
    """A stream for code that may do with it what it likes: closing it has no effect."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _streams_kept() -> Iterator[None]:
    # What a command prints on stdout is its answer, perhaps JSON: a plugin's words go to stderr, and it may close or replace
    # what it is given. This holds for all threads of the process, but one plugin is loaded at a time and it doesn't last.
    lent: Any = _Lent(sys.stderr) if sys.stderr is not None else None
    with redirect_stdout(lent), redirect_stderr(lent):
        yield


@contextmanager
def _descriptor_kept() -> Iterator[None]:
    """The same for what is written to the descriptor of stdout itself, by a C library say."""
    _flush()
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    with suppress(Exception):  # it may be closed, or nothing
        sys.__stdout__.flush()  # type: ignore[union-attr]


def error(candidate: Candidate, code: str, problem: str, hint: str | None = None) -> PluginError:
    """A PluginError about this plugin, naming its distribution and version."""
    return PluginError(code, _label(candidate), problem, hint=hint)


def _label(candidate: Candidate) -> str:
    return f"plugin {candidate.name} ({candidate.origin})"


@contextmanager
def _guard(candidate: Candidate, doing: str) -> Iterator[None]:
    # A plugin may call sys.exit or raise a BaseException of its own; only Ctrl-C is the user's.
    try:
        yield
    except KeyboardInterrupt:
        advice = "if that was not you, leave it out with BESTIARY_PLUGINS=NAME,NAME"
        log.warning("%s: interrupted while %s; %s", _label(candidate), doing, advice)
        raise
    except PluginError:
        raise
    except BaseException as problem:
        said = f"{doing} failed: {describe(problem)}"
        raise error(candidate, "E-PLG-BROKEN", said, _absent(candidate, problem)) from problem


def _absent(candidate: Candidate, problem: BaseException) -> str | None:
    """What to do about a module that is not there: the plugin's own, or one that it needs."""
    if not isinstance(problem, ModuleNotFoundError) or not problem.name:
        return None
    if candidate.module == problem.name or candidate.module.startswith(f"{problem.name}."):
        return f"check the name, and install the plugin or put the folder of {problem.name} on PYTHONPATH"
    return f"install what provides {problem.name}: the plugin needs it"


@contextmanager
def _watch(candidate: Candidate, doing: str, slow: float) -> Iterator[None]:
    """Name the plugin while it takes its time, and afterwards where that was more than ``slow`` seconds."""
    # Neither an import nor a hook can be ended from inside the process, but both can be named.
    text = "%s has been %s for %.0f s; Ctrl-C ends it, and BESTIARY_PLUGINS=NAME,NAME leaves it out"
    values = (text, _label(candidate), doing, SLOW_IMPORT_SECONDS)
    timer = threading.Timer(SLOW_IMPORT_SECONDS, log.warning, values)
    timer.daemon = True
    timer.start()
    began = time.monotonic()
    try:
        yield
    finally:
        timer.cancel()
        if (took := time.monotonic() - began) >= slow:
            log.warning("%s was %s for %.1f s", _label(candidate), doing, took)


def _validated(candidate: Candidate, plugin: object) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("bestiary")
    manager.add_hookspecs(hookspecs)
    # Looking at a plugin runs its code: a module may have a __dir__ and a __getattr__.
    with _guard(candidate, "checking its hooks"):
        _refuse_undecorated(candidate, plugin)
        try:
            manager.register(plugin, name=candidate.name)
        except pluggy.PluginValidationError as problem:
            # What is wrong, an argument say, is in its later lines.
            told = "; ".join(line.strip() for line in str(problem).splitlines() if line.strip())
            raise error(
                candidate, "E-PLG-BROKEN", f"checking its hooks failed: PluginValidationError: {told}"
            ) from problem
    for caller in manager.get_hookcallers(plugin) or ():
        implementations = caller.get_hookimpls()
        if not caller.has_spec() and not all(one.optionalhook for one in implementations):
            raise error(candidate, "E-PLG-HOOK", f"there is no hook {caller.name!r}", _suggest(caller.name))
        if any(one.wrapper or one.hookwrapper for one in implementations):
            raise error(candidate, "E-PLG-HOOK", f"hook {caller.name} is a wrapper; hooks here only register")
    manager.check_pending()
    return manager


def _refuse_undecorated(candidate: Candidate, plugin: object) -> None:
    for name in dir(plugin):
        value = inspect.getattr_static(plugin, name) if name.startswith(PREFIX) else None
        if callable(value) and not isinstance(value, type) and not hasattr(value, "bestiary_impl"):
            hint = f"write '@hookimpl' above {name}, from 'from bestiary import hookimpl'"
            raise error(candidate, "E-PLG-HOOK", f"function {name} is not marked as a hook", hint)


def _suggest(name: str) -> str:
    close = difflib.get_close_matches(name, BY_HOOK, n=1)
    return f"did you mean {close[0]!r}?" if close else "the hooks are " + ", ".join(BY_HOOK)


class _Registrar:
    """What a hook is given as ``register``; good for one hook call, in one thread."""

    def __init__(self, candidate: Candidate, kind: Kind) -> None:
        self.candidate, self.kind = candidate, kind
        self.staged: Staged = []
        self.open, self.thread = True, threading.get_ident()

    def __call__(self, descriptor: Any) -> None:
        if not self.open or threading.get_ident() != self.thread:
            raise self.refusal("register() was called outside of its hook call")
        if problem := problem_with(self.kind, descriptor, own=self.candidate.own):
            raise self.refusal(problem)
        self.staged.append((self.kind, frozen(descriptor)))

    def refusal(self, problem: str) -> PluginError:
        return error(self.candidate, "E-PLG-DESCRIPTOR", f"hook {self.kind.hook}: {problem}")


def _call(candidate: Candidate, caller: Callable[..., Any], kind: Kind) -> Staged:
    registrar = _Registrar(candidate, kind)
    try:
        with _guard(candidate, f"hook {kind.hook}"), _watch(candidate, f"in hook {kind.hook}", SLOW_HOOK_SECONDS):
            answers = caller(register=registrar)
    finally:
        registrar.open = False
    for answer in answers:
        if inspect.iscoroutine(answer) or inspect.isgenerator(answer):
            answer.close()
            raise registrar.refusal("is a generator or coroutine, so its body never ran; write a plain function")
        raise registrar.refusal(f"returned a {type(answer).__name__}; call register(...) and return nothing")
    return registrar.staged


def _refuse_repeats(candidate: Candidate, staged: Staged) -> None:
    seen: set[tuple[str, str]] = set()
    for kind, descriptor in staged:
        for claim in kind.claims(descriptor):
            if claim in seen:
                raise error(candidate, "E-PLG-DESCRIPTOR", f"{claim[0]} {claim[1]!r} is registered twice")
            seen.add(claim)
