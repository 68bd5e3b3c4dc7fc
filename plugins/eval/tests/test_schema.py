"""docs/schemas has this plugin's document as the class says it. Run as a script, this file writes it anew."""

import json
from pathlib import Path

from bestiary_eval.report import EvalReport

FILE = Path(__file__).parents[1] / "schemas" / "eval-1.json"


def test_the_schema_is_the_classes() -> None:
    assert json.loads(FILE.read_text()) == EvalReport.json_schema(), (
        "python plugins/eval/tests/test_schema.py writes it anew"
    )


def test_every_field_says_what_it_is() -> None:
    document = EvalReport.json_schema()
    for part in (document, *document["$defs"].values()):
        for field, about in part["properties"].items():
            assert "const" in about or "description" in about, f"{part.get('title')}.{field} has no description"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(EvalReport.json_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
