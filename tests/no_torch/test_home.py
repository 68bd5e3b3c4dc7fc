"""The cache folder and the staged workflow into it, with stand-ins for conversion and build."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bestiary import DataError, MissingInputError, OutputError
from bestiary.core import home as home_module
from bestiary.core.engine.options import BuildOptions
from bestiary.core.home import Home, check_space, file_identity, gib
from bestiary.core.plugins import PluginHost
from bestiary.core.prepare import prepare
from bestiary.core.source import fetch, recognise


def make(home, kind, name, source, content="x" * 100):
    place = home.place(kind, name, {"source": source})
    with home.making(place):
        place.mkdir()
        (place / "file").write_text(content)
        home.complete(place, source)
    return place


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def test_the_users_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("BESTIARY_HOME", str(tmp_path / "here"))
    assert Home().root == tmp_path / "here"
    monkeypatch.delenv("BESTIARY_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home().root == tmp_path / ".cache" / "bestiary"


def test_a_place_has_a_readable_name_and_depends_on_the_identity(home):
    one, other = (home.place("engines", "My Model/v1", {"n": n}) for n in (1, 2))
    assert one.name.startswith("My-Model-v1-") and one != other
    assert one == home.place("engines", "My Model/v1", {"n": 1})


@pytest.mark.parametrize("change", ["size", "mtime", "new file", "renamed"])
def test_a_source_that_changed_has_another_identity(tmp_path, change):
    file = tmp_path / "weights"
    file.write_text("one")
    before = file_identity(tmp_path)
    assert before == file_identity(tmp_path)
    match change:
        case "size":
            file.write_text("three")
        case "mtime":
            os.utime(file, ns=(1, 1))
        case "new file":
            (tmp_path / "more").write_text("")
        case "renamed":
            file.rename(tmp_path / "other")
    assert file_identity(tmp_path) != before


def test_entries_tell_kind_size_source_and_age(home):
    make(home, "checkpoints", "a", "org/a", "x" * 100)
    (entry,) = home.entries()
    assert (entry.kind, entry.source, entry.size, entry.complete) == ("checkpoints", "org/a", 100, True)
    assert 0 <= entry.age < 60


def test_an_unfinished_entry_is_listed_as_such_and_can_be_removed(home):
    place = home.place("engines", "a", {})
    with home.making(place):
        place.mkdir()
    (entry,) = home.entries()
    assert not entry.complete and entry.source == "(unfinished)"
    home.remove([entry.name])
    assert not home.entries()


def test_removing_by_name_beginning_and_all(home):
    first, second = make(home, "engines", "alpha", "one"), make(home, "engines", "beta", "two")
    with pytest.raises(MissingInputError, match="no such entry"):
        home.remove(["alpha", "gamma"])
    assert first.exists()
    assert [one.name for one in home.remove(["alph"])] == [first.name]
    assert not first.exists() and second.exists()
    assert [one.name for one in home.remove_all()] == [second.name]
    assert not second.exists() and not home.entries()


def test_a_beginning_that_fits_two_models_removes_nothing(home):
    places = [make(home, "engines", name, name) for name in ("model-a", "model-b")]
    with pytest.raises(MissingInputError, match="fits several"):
        home.remove(["model"])
    assert all(place.exists() for place in places)


def test_a_damaged_card_does_not_stop_the_listing(home):
    place = make(home, "engines", "alpha", "one")
    place.with_name(place.name + ".json").write_text("{")
    assert [one.source for one in home.entries()] == ["(unknown)"]


def test_too_little_space_shows_the_arithmetic(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 5 * 2**30})()
    monkeypatch.setattr(home_module.shutil, "disk_usage", lambda path: usage)
    check_space(tmp_path / "not" / "there", 4 * 2**30, "building m")
    with pytest.raises(
        OutputError, match=r"5\.00 GiB free, expected 6\.00 GiB \+ 64\.0 MiB reserve = 6\.06 GiB"
    ) as caught:
        check_space(tmp_path / "not" / "there", 6 * 2**30, "building m")
    assert caught.value.exit_status == 73


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    home = Home(tmp_path / "file")
    with pytest.raises(OutputError, match="BESTIARY_HOME") as caught, home.making(home.place("engines", "a", {})):
        pass
    assert str(tmp_path) not in str(caught.value)


def test_sizes_for_people():
    assert [gib(n) for n in (12, 2048, 3 * 2**20)] == ["12 B", "2.0 KiB", "3.0 MiB"]


@pytest.fixture(scope="module")
def host():
    return PluginHost.load()


@pytest.fixture
def hf(tmp_path):
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    return folder


def test_kinds_of_models_are_recognised(tmp_path, hf, host):
    for marker, kind in (("engine.json", "engine"), ("bestiary.json", "checkpoint")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / marker).write_text("{}")
        assert recognise(folder, host).kind == kind
    gguf = tmp_path / "model.bin"
    gguf.write_bytes(b"GGUF....")
    assert (recognise(gguf, host).kind, recognise(hf, host).kind) == ("source", "source")
    hub = recognise("org/some-Model.1", host)
    assert (hub.kind, hub.path, hub.name) == ("hub", None, "some-Model.1")


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        pytest.param("./nope", MissingInputError, "no such file", id="missing path"),
        pytest.param("nope.gguf", MissingInputError, "no such file", id="missing gguf"),
        pytest.param("a/b/c", MissingInputError, "no such file", id="deep path"),
        pytest.param("what is this", MissingInputError, "neither a path nor a hub id", id="words"),
    ],
)
def test_what_is_not_there_is_said(host, model, error, said):
    with pytest.raises(error, match=said):
        recognise(model, host)


def test_a_file_that_no_reader_knows_is_refused(tmp_path, host):
    (tmp_path / "model.safetensors").write_text("x")
    with pytest.raises(DataError, match="give the directory"):
        recognise(tmp_path / "model.safetensors", host)


def test_a_directory_of_ggufs_lists_them(tmp_path, host):
    (tmp_path / "a.gguf").write_text("")
    with pytest.raises(MissingInputError, match=r"give the file: a\.gguf"):
        recognise(tmp_path, host)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("RepositoryNotFoundError", "E-HUB-NOT-FOUND"),
        ("GatedRepoError", "E-HUB-GATED"),
        ("ConnectError", "E-HUB-OFFLINE"),
        ("LocalEntryNotFoundError", "E-HUB-OFFLINE"),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(monkeypatch, name, code):
    def fail(*args, **options):
        raise type(name, (Exception,), {})("a long story")

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = fail
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(MissingInputError) as caught:
        fetch("org/name", Steps())
    assert caught.value.code == code and caught.value.exit_status == 66
    assert name not in str(caught.value)


def test_the_hub_is_asked_for_weights_that_can_be_read_only(monkeypatch, tmp_path):
    asked = {}
    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, **options: asked.update(options) or str(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert fetch("org/name", Steps()) == tmp_path
    patterns = asked["allow_patterns"]
    assert "*.safetensors" in patterns and not any(
        "bin" in one or one == "*" or one.endswith(".py") for one in patterns
    )


class Steps:
    def __init__(self):
        self.seen = []

    def start(self, step, total, unit):
        self.name = step

    def advance(self, amount):
        pass

    def finish(self, note):
        self.seen.append((self.name, note))


@pytest.fixture
def work(monkeypatch):
    """Stand-ins for convert, verify and build that write a marker, and the calls they got."""
    calls = []

    def stand_in(name, marker):
        def work(*places, **options):
            calls.append((name, options))
            if marker:
                places[1].mkdir()
                (places[1] / marker).write_text(json.dumps({"made from": Path(places[0]).name}))

        return work

    for path, name, marker in (
        ("bestiary.converters.convert", "convert", "bestiary.json"),
        ("bestiary.core.checkpoint.verify", "verify", None),
        ("bestiary.core.engine.build", "build", "engine.json"),
    ):
        module = ModuleType(path)
        setattr(module, name, stand_in(name, marker))
        monkeypatch.setitem(sys.modules, path, module)
    converters = ModuleType("bestiary.converters")
    converters.__path__ = []
    monkeypatch.setitem(sys.modules, "bestiary.converters", converters)
    return calls


@pytest.fixture(autouse=True)
def any_directory(monkeypatch):
    """One reader that takes every directory, in place of the real ones, which need torch."""
    monkeypatch.setattr("bestiary.core.source._foreign", lambda path, host: path.is_dir())


def test_a_model_goes_through_every_step_once(hf, home, host, work):
    steps = Steps()
    engine = prepare(hf, host=host, options=BuildOptions(), progress=steps, home=home)
    assert (engine / "engine.json").is_file()
    assert [name for name, _ in work] == ["convert", "verify", "build"]
    assert prepare(hf, host=host, options=BuildOptions(), progress=steps, home=home) == engine
    assert len(work) == 3 and steps.seen == [("convert", "from the cache"), ("build", "from the cache")]


def test_other_options_build_again_without_converting_again(hf, home, host, work):
    one = prepare(hf, host=host, options=BuildOptions(), home=home)
    other = prepare(hf, host=host, options=BuildOptions(max_batch_size=2), home=home)
    assert one != other and [name for name, _ in work] == ["convert", "verify", "build", "build"]


def test_a_changed_model_is_converted_again(hf, home, host, work):
    prepare(hf, host=host, options=BuildOptions(), home=home)
    (hf / "model.safetensors").write_text("more")
    prepare(hf, host=host, options=BuildOptions(), home=home)
    assert [name for name, _ in work].count("convert") == 2


def test_a_conversion_that_does_not_verify_is_not_kept(hf, home, host, work, monkeypatch):
    def refuse(*args, **options):
        raise DataError("E-CKPT-DIGEST", "file", "differs")

    monkeypatch.setattr(sys.modules["bestiary.core.checkpoint.verify"], "verify", refuse)
    with pytest.raises(DataError):
        prepare(hf, host=host, options=BuildOptions(), home=home)
    assert not home.entries()


def test_an_engine_is_used_as_it_is(tmp_path, home, host, work):
    (tmp_path / "engine.json").write_text("{}")
    assert prepare(tmp_path, host=host, options=BuildOptions(), home=home) == tmp_path
    assert not work


def test_a_checkpoint_is_only_built(tmp_path, home, host, work):
    (tmp_path / "bestiary.json").write_text("{}")
    prepare(tmp_path, host=host, options=BuildOptions(), home=home)
    assert [name for name, _ in work] == ["build"]
