"""The documentation against the code: hooks, links, commands, options, tables."""

import dataclasses
import inspect
import re
import shlex

import documents
import pytest
import typer

import bestiary
from bestiary import BeamSearchParams, SamplingParams, hookspecs, spec
from bestiary.core.cli.main import app, plugin_command
from bestiary.core.cli.session import Session

HOOKS = documents.ROOT / "docs" / "hooks.md"
API = documents.ROOT / "docs" / "api.md"
PAGES = documents.pages()
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")


@pytest.mark.parametrize("hook", hookspecs.__all__)
def test_each_hook_is_documented_with_signature_fields_example_and_errors(hook):
    section = sections(HOOKS)[hook]
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    assert f"`{hook}{signature}`" in section
    (descriptor,) = re.findall(r"Callable\[\[(\w+)\], None\]", signature)
    fields = [field.name for field in dataclasses.fields(getattr(spec, descriptor))]
    head = f"| field of `{descriptor}` | meaning |"
    table = section[section.index(head) :].split("\n\n")[0]
    documented = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(documented) == sorted(fields)
    # The examples run in tests/torch/test_doc_snippets.py.
    assert f"\ndef {hook}(register: Callable[[{descriptor}], None]) -> None:\n" in section
    assert "```python run\n" in section
    assert "\nErrors: " in section


@pytest.mark.parametrize("page", PAGES, ids=documents.name)
def test_examples_import_what_is_public(page):
    for block in documents.blocks(page):
        private = re.findall(r"^\s*(?:from|import) (bestiary\.core\S*)", block.text, re.MULTILINE)
        assert not private, f"{documents.name(page)}:{block.line} imports {', '.join(private)}"


def test_each_hook_specification_is_public():
    assert {name for name, one in vars(hookspecs).items() if hasattr(one, "bestiary_spec")} == set(hookspecs.__all__)


def test_no_hook_is_documented_that_does_not_exist():
    assert set(sections(HOOKS)) == set(hookspecs.__all__)


def sections(page):
    """The text below each second-level heading."""
    parts = re.split(r"^## (.+)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("page", PAGES, ids=documents.name)
def test_error_codes_are_those_of_the_sources(page):
    sources = "".join(path.read_text(encoding="utf-8") for path in documents.ROOT.rglob("*.py") if _of_sdk(path))
    for code in re.findall(r"\bE-[A-Z]+-[A-Z0-9-]*[A-Z0-9]", page.read_text(encoding="utf-8")):
        made = code.startswith("E-REQ-")  # of a parameter's name
        assert made or code in sources, f"{documents.name(page)} names {code}, which nothing raises"


def _of_sdk(path):
    return path.relative_to(documents.ROOT).parts[0] in {"core", "converters", "layers", "models", "plugins"}


@pytest.mark.parametrize("page", PAGES, ids=documents.name)
def test_links_lead_somewhere(page):
    for link in _LINK.findall(documents.prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{documents.name(page)} links to {link}, which is not there"
        assert path.is_relative_to(documents.ROOT), f"{documents.name(page)} links to {link}, outside of the project"
        assert not anchor or anchor in anchors(path), f"{documents.name(page)} links to {link}: no such heading"


def test_every_page_of_docs_is_in_the_table_of_contents():
    index = documents.ROOT / "docs" / "index.md"
    linked = {link for link in _LINK.findall(index.read_text()) if "/" not in link}
    assert linked == {path.name for path in index.parent.glob("*.md")} - {"index.md"}


def commands():
    """Each command's words → its options, plugins' included; () has the global ones."""
    group = typer.main.get_command(app)
    # typer brings its own copy of click in some versions; what a context must have did not change.
    found = {(): options(group) | {"-h", "--help"}}
    for name, command in group.commands.items():
        found[(name,)] = options(command)
        for below, one in getattr(command, "commands", {}).items():
            found[(name, below)] = options(one)
    session = Session()
    for command in session.host.commands():
        found[(command.name,)] = options(plugin_command(session, command.name))
    return found


def options(command):
    return {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


COMMANDS = commands()


def test_the_command_line_is_introspected():
    assert "--explain" in COMMANDS["build",]
    assert "--all" in COMMANDS["cache", "rm"]
    assert "--against" in COMMANDS["eval",]
    assert "--strict-plugins" in COMMANDS[()]


def command_lines(page):
    """Lines that call bestiary, in fenced blocks and in the text."""
    for block in documents.blocks(page):
        for line in block.text.splitlines():
            line = line.removeprefix("$ ").strip()
            if (
                line.startswith("bestiary ")
                and block.info in ("console", "sh", "bash", "text", "")
                and "  " not in line
            ):
                yield line
    yield from re.findall(r"`(bestiary [^`]+)`", documents.prose(page))
    for line in documents.prose(page).splitlines():
        if line.startswith("    bestiary "):
            yield line.strip()


def complaint(line):
    """What is wrong with a command line, if anything."""
    words = shlex.split(line.partition(" # ")[0])[1:]
    command = ()
    for word in words:
        if word == "…" or word.startswith("|"):
            break
        if (*command, word) in COMMANDS and len(command) == command_depth(command):
            command = (*command, word)
        elif _OPTION.fullmatch(word.partition("=")[0]) and word.partition("=")[0] not in COMMANDS[command]:
            return f"{' '.join(('bestiary', *command))} has no option {word}"
    own_word = next((word for word in words if re.fullmatch(r"[a-z]+", word)), None)
    named = command or not words or words[0].startswith("-") or words[0].isupper() or words[0] == "…"
    return None if named else f"bestiary has no command {own_word or words[0]}"


def command_depth(command):
    return 1 if command in (("bench",), ("cache",), ("new",)) else 0


@pytest.mark.parametrize("page", PAGES, ids=documents.name)
def test_commands_and_their_options_exist(page):
    for line in command_lines(page):
        assert complaint(line) is None, f"{documents.name(page)}, {line!r}: {complaint(line)}"


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("bestiary build a b --explain --kernel rms_norm=torch", False),
        ("bestiary cache rm --all", False),
        ("bestiary -p module plugins", False),
        ("bestiary run MODEL 'a prompt' -t 0", False),
        ("bestiary build a b --explian", True),
        ("bestiary cache rm --every", True),
        ("bestiary serve engine", True),
        ("bestiary --explain build", True),
    ],
)
def test_the_check_of_commands_can_fail(line, wrong):
    assert bool(complaint(line)) is wrong


@pytest.mark.parametrize("page", [path for path in PAGES if path.parent.name == "docs"], ids=documents.name)
def test_options_named_alone_exist(page):
    everything = set().union(*COMMANDS.values())
    for code in re.findall(r"`(--[a-z][\w-]*)[^`]*`", documents.prose(page)):
        assert code in everything, f"{documents.name(page)} names {code}, which no command has"


def test_the_table_of_sampling_parameters_is_the_class():
    documented = [(row[0], row[1]) for row in documents.rows(API, "SamplingParams")]
    assert documented == [(f.name, repr(f.default).replace("'", '"')) for f in dataclasses.fields(SamplingParams)]


def test_the_table_of_beam_search_parameters_is_the_class():
    documented = [(row[0], row[1]) for row in documents.rows(API, "BeamSearchParams")]
    unset = (
        "needed" if f.default is dataclasses.MISSING else repr(f.default) for f in dataclasses.fields(BeamSearchParams)
    )
    assert documented == list(zip((f.name for f in dataclasses.fields(BeamSearchParams)), unset, strict=True))


def test_the_table_of_errors_is_the_classes():
    documented = {row[0]: int(row[1]) for row in documents.rows(API, "Errors and exit codes")}
    classes = [value for value in vars(bestiary).values() if inspect.isclass(value) and hasattr(value, "exit_status")]
    assert documented == {one.__name__: one.exit_status for one in classes if one is not bestiary.BestiaryError}


def anchors(path):
    """A page's headings as a forge makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", documents.prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
