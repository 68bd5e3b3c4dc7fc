"""Of more answers than are returned, the likeliest."""

from __future__ import annotations

from bestiary.core.best_of import likeliest_answers


def test_the_best_answers_have_the_likeliest_tokens():
    assert likeliest_answers([-3.0, -4.0, -1.0, 0.0, float("-inf")], [3, 8, 1, 0, 5], 3) == [1, 0, 2]
    assert likeliest_answers([-1.0, -1.0], [1, 1], 2) == [0, 1]


def test_answers_that_failed_come_after_all_others():
    failed = float("-inf")
    assert likeliest_answers([failed, 0.0, -9.0, failed], [3, 0, 3, 0], 4) == [2, 1, 0, 3]
