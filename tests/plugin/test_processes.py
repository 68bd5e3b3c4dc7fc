"""Every process of an engine loads exactly its parent's plugins, in its parent's versions, or dies with a sentence."""

from __future__ import annotations

import shutil

import pytest
from scratch import Environment

from bestiary import PluginError
from bestiary.core.runtime.rank_main import check_versions

# What the parent loads, then what happens to the disk, then ranks that say what they loaded.
RANKS = """
import sys, shutil, json
from pathlib import Path
from bestiary import BestiaryError
from bestiary.core.plugins import PluginHost
from bestiary.core.runtime.ranks import RankExecutor

host = PluginHost.load(prefer=dict(pair.split("=") for pair in sys.argv[1:]))
{meanwhile}
try:
    ranks = RankExecutor(
        tensor=2, stages=1, device="cpu", host=host, worker="rank_workers:summing", arguments={{}}
    )
    print(json.dumps([sorted(host.plugin_names()), *(sorted(fact["plugins"]) for fact in ranks.facts)]))
    ranks.close()
except BestiaryError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
GONE = """
for path in Path("site").glob("demo_other*"):
    shutil.rmtree(path)
"""
RENEWED = """
info = next(Path("site").glob("demo_other-*.dist-info"))
(info / "METADATA").write_text((info / "METADATA").read_text().replace("Version: 1.0", "Version: 1.1"))
"""
BROKEN = "(Path('site') / 'demo_other' / 'plugin.py').write_text('raise SystemExit(7)')"


@pytest.mark.slow
def test_ranks_load_what_their_parent_loaded_and_nothing_else(scratch: Environment) -> None:
    ran = scratch.python(RANKS.format(meanwhile=""), "twin=demo-twin-b", plugins="good,twin,import-error")
    assert ran.status == 0, ran
    assert ran.json == [["bestiary", "good", "twin"]] * 3, (
        "not the broken one, and of the twins the one that was chosen"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        pytest.param(GONE, "plugin other: this process can't load it: not installed here", id="uninstalled"),
        pytest.param(RENEWED, "distribution demo-other: is not the one that the parent process loaded; found 1.1, "
                     "expected 1.0", id="upgraded"),
        pytest.param(BROKEN, "plugin other (demo-other 1.0): importing demo_other.plugin failed: SystemExit: 7",
                     id="broken"),
    ],
)  # fmt: skip
def test_a_rank_that_cannot_load_them_ends_the_engine_with_a_sentence(
    own: Environment, meanwhile: str, said: str
) -> None:
    ran = own.python(RANKS.format(meanwhile=meanwhile), plugins="good,other")
    assert ran.status == 0, ran
    kind, sentence = ran.json
    assert kind == "PluginError" and sentence.startswith("rank ") and said in sentence, sentence
    shutil.rmtree(own.folder / "site")


def test_a_process_with_other_versions_is_refused() -> None:
    check_versions({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    with pytest.raises(PluginError, match=r"distribution a: .* found nothing, expected 1"):
        check_versions({"a": "1"}, {})
    with pytest.raises(PluginError, match=r"distribution c: .* found 3, expected nothing"):
        check_versions({}, {"c": "3"})
