"""What became of the plugins, and who quarrels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bestiary.core.doctor.findings import Finding, Level

if TYPE_CHECKING:
    from bestiary.core.plugins import PluginHost


def plugins(load: Callable[[], PluginHost]) -> Iterator[Finding]:
    """Each plugin: broken and out of range ones are errors, those kept out by BESTIARY_PLUGINS are not."""
    host = load()
    levels: dict[str, Level] = {"loaded": "ok", "broken": "error", "refused": "error"}
    skipped: dict[str, list[str]] = {}
    for record in host.records():
        if record.state == "skipped":
            skipped.setdefault(record.reason, []).append(record.origin.plugin)
            continue
        took = f" in {record.seconds * 1000:.0f} ms" if record.seconds else ""
        reason = f": {record.reason}" if record.reason else ""
        text = f"{record.origin}, {record.state}{took}{reason}"
        yield Finding(record.origin.plugin, text, levels[record.state])
        for note in record.notes:
            yield Finding(record.origin.plugin, note, "warning")
    for reason, names in skipped.items():
        yield Finding("skipped", f"{reason}: {', '.join(names)}", "note")
    for conflict in host.conflicts():
        claimants = f"is claimed by {' and '.join(map(str, conflict.claimants))}"
        if conflict.chosen:
            yield Finding(f"{conflict.kind} {conflict.name}", f"{claimants}; {conflict.chosen} has it", "note")
        else:
            text = f"{claimants}; decide with --prefer {conflict.name}=DIST, or uninstall one"
            yield Finding(f"{conflict.kind} {conflict.name}", text, "error")
