"""The glossary: made from the notebooks, each term explained once, in a sentence of its own."""

from collections import Counter

from tools import glossary


def test_the_page_is_that_of_the_notebooks():
    assert glossary.PAGE.read_text(encoding="utf-8") == glossary.page(), (
        "docs/glossary.md is older than the notebooks: python -m tools.glossary"
    )


def test_each_term_is_explained_once():
    counts = Counter(term.name.casefold() for term in glossary.terms())
    assert len(counts) > 40
    assert {name: n for name, n in counts.items() if n > 1} == {}


def test_each_explanation_is_a_whole_sentence():
    for name, sentence, path in glossary.terms():
        assert sentence.endswith("."), f"{path.name}: {name}: {sentence}"
        assert sentence[0].isupper() or sentence.startswith(("**", "`", "$")), sentence
        assert 5 <= len(sentence.split()) <= 45, f"{path.name}: {name}: {sentence}"
