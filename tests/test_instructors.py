"""The instructors' page says what the exercises say."""

import pytest

from common.exercises import catalogue
from tools import instructors


def test_the_page_lists_the_mistakes_of_today():
    page = instructors.PAGE.read_text(encoding="utf-8")
    assert instructors.mistakes() in page, "run `python -m tools.instructors`"


def test_every_mistake_is_listed_once():
    lines = instructors.mistakes().splitlines()
    sentences = [s for e in catalogue().values() for _, s in e.mistakes]
    assert sorted(line[4:] for line in lines if line.startswith("  - ")) == sorted(sentences)


def test_writing_twice_changes_nothing():
    once = instructors.written(instructors.PAGE.read_text(encoding="utf-8"))
    assert instructors.written(once) == once
    with pytest.raises(ValueError, match="no marks for 'times'"):
        instructors.written("# A page")
