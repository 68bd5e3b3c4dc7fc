"""The model matrix says what the kept outcomes of the conformance kit say."""

import copy

import model_matrix
import pytest

REPORTS = model_matrix.read_results(model_matrix.RESULTS)


def test_the_page_is_made_from_the_kept_outcomes():
    assert model_matrix.PAGE.read_text(encoding="utf-8") == model_matrix.page(REPORTS), "run: make matrix"


def test_the_kept_outcomes_are_of_passing_plugins():
    assert REPORTS
    for report in REPORTS:
        assert report["passed"], f"{report['model']} failed when its outcomes were kept; mend it, then make matrix"


def test_the_readme_says_what_the_outcomes_say():
    assert model_matrix.ties(REPORTS) in (model_matrix.ROOT / "README.md").read_text(encoding="utf-8")


def cell(report, column):
    headings, _, row = [line for line in model_matrix.page([report]).splitlines() if line.startswith("|")][:3]
    return dict(zip(headings.split("|"), row.split("|"), strict=True))[f" {column} "].strip()


def changed(check, outcome, *, every=True):
    report = copy.deepcopy(REPORTS[0])
    found = [one for one in report["checks"] if one["check"] == check]
    for one in found if every else found[:1]:
        one.update(outcome=outcome, text="a reason")
    return report


@pytest.mark.parametrize(
    ("column", "check", "outcome", "every", "shown"),
    [
        ("prefix reuse", "test_prefix_reuse", "failed", False, "no"),
        ("prefix reuse", "test_prefix_reuse", "short", False, "no"),
        ("deterministic", "test_deterministic", "waived", True, "waived"),
        ("PP 2", "test_pipeline_parallel", "refused", False, "10 of 11"),
        ("GGUF", "test_gguf_map", "none", True, "—"),
        ("HF", "test_unknown_keys", "failed", False, "no"),
    ],
)
def test_an_outcome_shows(column, check, outcome, every, shown):
    assert cell(changed(check, outcome, every=every), column) == shown


def test_a_check_that_was_not_run_is_no_yes():
    report = copy.deepcopy(REPORTS[0])
    report["checks"] = [one for one in report["checks"] if one["check"] != "test_export"]
    assert cell(report, "export") == "no"


def test_outcomes_of_the_short_form_are_not_kept(tmp_path):
    (tmp_path / "one.json").write_text('{"conformance": [{"model": "m", "long": false}]}')
    with pytest.raises(ValueError, match="of the short form"):
        model_matrix.read_results(tmp_path)
