"""The plugin host: find, check, load and ask plugins. Private; ``LLM(plugins=…)`` and ``bestiary -p`` are its faces."""

from bestiary.core.plugins.host import PluginHost
from bestiary.core.plugins.records import Conflict, Origin, PluginRecord
from bestiary.core.plugins.resolve import resolve

__all__ = ["Conflict", "Origin", "PluginHost", "PluginRecord", "resolve"]
