"""The number that a text ends in, as people and models write it."""

import pytest

from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.number import final_number
from tropism.evals.scorers.registry import load_scorer

FRACTIONS = [
    ("The answer is 3/4", 0.75),
    ("3 / 4 of it.", 0.75),
    (r"$\frac{3}{4}$", 0.75),
    (r"\boxed{\dfrac{3}{4}}", 0.75),
    (r"\tfrac34", 0.75),
    (r"-\frac{3}{4}", -0.75),
    (r"\frac{-3}{4}", -0.75),
    (r"\boxed{1\frac{1}{2}}", 1.5),
    ("1 1/2 cups", 1.5),
    ("3 and 1/2", 3.5),
    ("1½", 1.5),
    ("½", 0.5),
    ("5 - 1 - 1/2", 0.5),
    ("16/4 = 4", 4),
    ("on 12/25/2024", 2024),
    ("1/0", 0),
    (r"\frac{\sqrt{3}}{2}", 0.8660254),
]
POWERS = [
    ("2.5×10^3", 2500),
    (r"2.5 \times 10^{3}", 2500),
    ("2.5 x 10^3", 2500),
    ("2.5·10³", 2500),
    ("2.5e3", 2500),
    ("10^6", 1e6),
    ("10**3", 1000),
    ("10⁻²", 0.01),
    ("2^3", 8),
    ("0^-1", 0),
    (r"\boxed{2\sqrt{3}}", 3.4641016),
    ("√2", 1.41421356),
    (r"3\pi", 9.4247780),
]
SIGNS = [
    ("–5 degrees", -5),
    ("—5", -5),
    ("‑5", -5),
    ("negative 5 degrees", -5),
    ("it is minus 5", -5),
    ("8 minus 5", 5),
    ("pages 3–5", 5),
    ("16-3", 3),
]
GROUPS = [
    ("1\u2009000\u2009000", 1e6),
    ("1\u00a0000\u202f000", 1e6),
    ("1 000 000", 1e6),
    ("It costs 12 345 francs", 12345),
    ("100 200 300", 300),
    (r"1\,000\,000", 1e6),
    ("1'000", 1000),
    ("1_000", 1000),
    ("12,34,567", 1234567),
    ("1.234,56", 1234.56),
    ("1.000.000", 1e6),
    ("2.5 million", 2.5e6),
    ("$5k", 5000),
    ("a 5k", 5),
    ("5 dollars and 5 cents", 5.05),
]
UNITS = [
    (r"\boxed{12\text{ cm}^2}", 12),
    (r"\boxed{12\,\mathrm{cm}^{2}}", 12),
    ("12 cm²", 12),
    ("12 cm^2", 12),
    ("12 m2", 12),
    ("5 kg of CO2", 5),
    ("€20", 20),
    ("20 €", 20),
    ("₹1,500", 1500),
    ("50 %", 50),
    (r"\boxed{50\%}", 50),
    ("30°", 30),
    (r"30^\circ", 30),
    ("18 miles/hour", 18),
]
SCRIPTS = [("The answer is １８", 18), ("١٨", 18), ("१८", 18), ("𝟏𝟖", 18), ("1️⃣8️⃣", 18), ("It&#39;s 18", 18)]
NEXT_QUESTIONS = [
    ("#### 18\n\nTom has 5 apples and eats 2. How many are left?\n5-2=3\n#### 3", 18),
    ("#### 18\n\nQuestion: Tom has 5 apples.\nAnswer: 5", 18),
    ("The answer is 18.\n\nQuestion: Tom has 5 apples.\nThe answer is 5.", 18),
    ("The answer is 18.\nUser: and 5?", 18),
    ("18<|im_start|>user\n5", 18),
    ("Question: 5 and 13?\nAnswer: 18", 18),
    ("#### 18\nWait, I forgot 2.\n#### 20", 20),
    ("#### 1\nadd 5\n#### 2\nso 7", 7),
    ("#### 18 apples", 18),
    ("#### **18**", 18),
    ("#### 3/4", 0.75),
    ("#### 18\n\\boxed{5}", 18),
]
NONE = ["x^2", "x_1", "H2O", "\\boxed{}", "^3"]


@pytest.mark.parametrize(("text", "number"), [*FRACTIONS, *POWERS, *SIGNS, *GROUPS, *UNITS, *SCRIPTS, *NEXT_QUESTIONS])
def test_the_number_is_the_one_that_a_person_reads(text, number):
    assert float(final_number(text)) == pytest.approx(number)


@pytest.mark.parametrize("text", NONE)
def test_an_exponent_an_index_and_a_formula_are_no_numbers(text):
    assert final_number(text) is None


def test_millions_answer_how_much_and_how_many_millions():
    score = load_scorer("final_number").score
    for target, value in (("4", 1), ("4000000", 1), ("5", 0)):
        assert score(Sample("s", [], "There is $4 million left.", target)).value == value


@pytest.mark.timeout(60)  # quadratic matching takes minutes
@pytest.mark.parametrize(
    "piece",
    [
        "9",
        "1,",
        "1 ",
        "1/",
        "\\frac{",
        "{",
        "\\boxed{",
        "####",
        "#### 1\n",
        "1 000 ",
        "^",
        "√",
        "-",
        "1.",
        "Q:\n",
        "1×10^",
        "&",
    ],
)
def test_a_hostile_text_costs_little(piece):
    final_number(piece * 30_000)
