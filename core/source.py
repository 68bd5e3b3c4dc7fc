"""What MODEL means: a Hugging Face directory, a GGUF file, a hub id, a checkpoint or an engine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bestiary.core.errors import BestiaryError, DataError, MissingInputError
from bestiary.core.plugins import PluginHost, resolve
from bestiary.core.progress import Progress, step

Kind = Literal["engine", "checkpoint", "source", "hub"]

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "LICENSE*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_MARKERS: tuple[tuple[str, Kind], ...] = (("engine.json", "engine"), ("bestiary.json", "checkpoint"))


@dataclass(frozen=True)
class Source:
    """A recognised MODEL: its kind, its path (None for a hub id, until it is fetched), and a name for people."""

    kind: Kind
    path: Path | None
    name: str


def recognise(model: str | Path, host: PluginHost) -> Source:
    """Say what MODEL is, from names and a few bytes.

    Raises:
        MissingInputError: nothing is there.
        DataError: something is there that no reader knows.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _directory(path, host)
    if path.is_file():
        # What the user names himself may be a link to anywhere; the rule against links is for names found inside a model.
        path = path.resolve()
        return _file(path, host)
    text = str(model)
    if _looks_like_path(text):
        raise MissingInputError("E-MODEL-MISSING", path.name or text, "no such file or directory")
    if _HUB_ID.fullmatch(text):
        return Source("hub", None, text.rpartition("/")[2])
    raise MissingInputError("E-MODEL-MISSING", repr(text)[:120], "neither a path nor a hub id", expected=_EXPECTED)


_EXPECTED = "a Hugging Face directory, a GGUF file, a hub id such as 'org/name', a checkpoint or an engine"


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith((".gguf", ".safetensors", "/"))


def _directory(path: Path, host: PluginHost) -> Source:
    name = path.resolve().name
    for marker, kind in _MARKERS:
        if (path / marker).is_file():
            return Source(kind, path, name)
    ggufs = sorted(one.name for one in path.glob("*.gguf"))
    if ggufs and not (path / "config.json").is_file():
        hint = f"give the file: {', '.join(ggufs[:5])}"
        raise MissingInputError("E-MODEL-KIND", name, "not a model directory", expected=_DIRECTORY, hint=hint)
    if _foreign(path, host):
        return Source("source", path, name)
    raise MissingInputError("E-MODEL-KIND", name, "not a model directory", expected=_DIRECTORY)


_DIRECTORY = "config.json with *.safetensors, bestiary.json (a checkpoint) or engine.json (an engine)"


def _file(path: Path, host: PluginHost) -> Source:
    with path.open("rb") as file:
        magic = file.read(4)
    # By suffix too, so that a damaged GGUF gets the reader's own complaint.
    if magic == b"GGUF" or path.suffix == ".gguf" or _foreign(path, host):
        return Source("source", path, path.stem)
    hint = "give the directory that it lies in" if path.suffix in (".safetensors", ".json") else None
    raise DataError("E-MODEL-KIND", path.name, "not a model file", expected="a GGUF file", hint=hint)


def _foreign(path: Path, host: PluginHost) -> bool:
    """Whether a plugin's reader takes the path."""
    for reader in host.readers():
        sniff = resolve(reader.sniff, needed_by=f"reader {reader.name} ({host.origin(reader)})")
        if sniff(path):
            return True
    return False


def fetch(hub_id: str, progress: Progress, files: Sequence[str] = HUB_FILES) -> Path:
    """Download a model from the hub, or find it in huggingface_hub's own cache.

    Args:
        files: patterns of the files that are wanted.

    Raises:
        MissingInputError: there is no such model, it is gated, or the hub can't be reached.
    """
    from huggingface_hub import snapshot_download

    with step(progress, "download", None, "B") as note:
        try:
            folder = Path(snapshot_download(hub_id, allow_patterns=list(files), tqdm_class=_bars(progress)))
        except KeyboardInterrupt:
            raise
        except Exception as error:
            raise _hub_error(hub_id, error) from error
        note.text = hub_id
    return folder


def find_local(model: str | Path, host: PluginHost) -> Source:
    """Say what MODEL is, and where it lies on this machine; nothing is downloaded.

    Raises:
        MissingInputError: it is not there, or only the hub may have it.
        DataError: something is there that no reader knows.
    """
    source = recognise(model, host)
    if source.path is not None:
        return source
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(str(model), allow_patterns=list(HUB_FILES), local_files_only=True))
    except LocalEntryNotFoundError as error:
        problem, hint = "is neither a path nor in the hub's own cache", "download it first: bestiary run does"
        raise MissingInputError("E-HUB-OFFLINE", str(model), problem, hint=hint) from error
    return Source(recognise(folder, host).kind, folder, source.name)


def _hub_error(hub_id: str, error: Exception) -> BestiaryError:
    kinds = {one.__name__ for one in type(error).__mro__}
    if "GatedRepoError" in kinds:
        hint = "accept the model's terms on its page, then 'hf auth login'"
        return MissingInputError("E-HUB-GATED", hub_id, "the hub wants you to accept this model's terms", hint=hint)
    if "RepositoryNotFoundError" in kinds or "HFValidationError" in kinds:
        hint = "check the spelling; a private model needs 'hf auth login'; a local directory starts with './'"
        return MissingInputError("E-HUB-NOT-FOUND", hub_id, "the hub has no such model, and no local path has this name", hint=hint)  # fmt: skip
    hint = "work with a local directory or a GGUF file, or run again with a network (is HF_HUB_OFFLINE set?)"
    problem = "not a local path, and the model hub can't be reached"
    found = "no copy in the hub's own cache, and no answer from the hub"
    if "LocalEntryNotFoundError" not in kinds and (said := str(error).strip()):
        found = said.splitlines()[0][:120]
    return MissingInputError("E-HUB-OFFLINE", hub_id, problem, found=found, hint=hint)


def _bars(progress: Progress) -> type[Any]:
    """A tqdm that tells ``progress`` the bytes and draws nothing."""
    from tqdm.auto import tqdm

    class Relay(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.relayed = options.get("unit") == "B"
            # Newer hubs pass options that only their own subclass knows.
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.relayed and n:
                progress.advance(int(n))

    return Relay
