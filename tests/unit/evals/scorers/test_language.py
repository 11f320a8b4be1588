"""The language of what is said, not of code, formulas and addresses beside it."""

import pytest

from tropism.errors import SpecError
from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.registry import load_scorer

pytest.importorskip("lingua")

CODE = "```python\nfor line in open(path).readlines():\n    value = compute(line)\nreturn the_final_result\n```"


def score(text, **options):
    return load_scorer("language", {"language": "fr", **options}).score(Sample("s", [], text))


@pytest.mark.parametrize(
    "text",
    [
        f"Voici le code qui lit le fichier :\n{CODE}",
        "Voir la page https://www.example.com/the/first/page/of/the/book",
        "La réponse est \\(\\frac{\\text{distance and time}}{2}\\), je crois.",
        "La réponse est $\\text{the distance over the time}$, je crois.",
        '<p class="the first paragraph of the page">Bonjour à tous</p>',
        "Appelez `the_function_of_the_module` avec un nom.",
    ],
)
def test_code_and_addresses_are_in_no_language(text):
    assert score(text).value == 1


@pytest.mark.parametrize("text", ["Taxi hotel restaurant", "No problem at all"])
def test_where_no_language_stands_out_the_response_is_unscored(text):
    found = score(text)
    assert found.value is None
    assert found.unscored.startswith("no language stands out (")
    assert score(text, minimum_lead=0).value == 0


def test_text_that_is_all_code_or_of_another_script_is_unscored():
    assert score(CODE).unscored == "fewer than 10 letters"
    assert score("გამარჯობა, როგორ ხართ?").unscored == "no language recognised"


def test_the_lead_is_checked():
    with pytest.raises(SpecError, match=r"minimum_lead must be in \[0, 1\), found 1"):
        score("x", minimum_lead=1.0)
