"""What docs/schemas says of ``--json`` is what the classes say.

Run as a script, this file writes docs/schemas anew.
"""

import json
from pathlib import Path

from bestiary.core.checkpoint.files import json_bytes
from bestiary.core.reports.schemas import kinds

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "schemas"


def documents():
    return {f"{kind.schema_name}-{kind.schema_version}.json": kind.json_schema() for kind in kinds()}


def test_the_folder_has_every_schema_as_it_is():
    found = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert found == documents(), "python tests/torch/reports/test_schemas.py writes docs/schemas anew"


def test_every_field_says_what_it_is():
    for name, document in documents().items():
        for part in (document, *document.get("$defs", {}).values()):
            for field, about in part.get("properties", {}).items():
                described = "const" in about or "description" in about
                assert described, f"{name}: {part.get('title')}.{field} has no description"


if __name__ == "__main__":
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, document in documents().items():
        (FOLDER / name).write_bytes(json_bytes(document))
