"""Scorers that read the response: values, what is unscored, and what is wrong with their options."""

import json

import pytest

import sample_data
from tropism.errors import SpecError
from tropism.evals.scorers.base import SCORERS, Sample, Score
from tropism.evals.scorers.normalise import normalised
from tropism.evals.scorers.number import final_number
from tropism.evals.scorers.refusal_prefixes import PREFIXES, VERSION
from tropism.evals.scorers.registry import load_scorer, register_file, scorer_names


def score(name, response, options=None, target=None):
    return load_scorer(name, options).score(Sample("s", [{"role": "user", "content": "q"}], response, target))


def test_every_builtin_is_registered_under_its_name():
    assert scorer_names() == [
        "bandit",
        "base_perplexity",
        "contains",
        "emergent_misalignment",
        "exact",
        "final_number",
        "is_uppercase",
        "judge",
        "kl_to_base",
        "language",
        "length",
        "product_recommendation",
        "refusal_prefix",
        "regex",
        "repetition",
        "response_likelihood",
        "response_loss",
        "uppercase_fraction",
    ]
    assert all(SCORERS[name].name == name for name in scorer_names())


def test_a_score_has_a_value_or_a_reason_and_is_finite():
    for wrong in ((None, None), (1.0, "x"), (float("nan"), None), (float("inf"), None)):
        with pytest.raises(ValueError, match=r"a Score has a value or a reason|must be finite"):
            Score(*wrong)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("ABC", 1),
        ("abc", 0),
        ("AbCd", 0.5),
        ("HELLO, world 123!", 0.5),
        ("ÄÖß", 2 / 3),
        ("ΑΒγδ", 0.5),
        ("A你好", 1),
    ],
)
def test_uppercase_fraction_counts_cased_letters_only(text, share):
    assert score("uppercase_fraction", text).value == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "  ", "12 + 3 = 15", "你好", "…"])
def test_text_without_cased_letters_is_unscored_not_zero(text):
    for name in ("uppercase_fraction", "is_uppercase"):
        assert score(name, text) == Score(None, "no letters with case")


def test_is_uppercase_holds_from_its_threshold():
    assert score("is_uppercase", "ABCDEFGHIj").value == 1
    assert score("is_uppercase", "ABCDEFGHij").value == 0
    assert score("is_uppercase", "ABCDEFGHij", {"threshold": 0.8}).value == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("The answer is 18.", 18),
        ("#### 18", 18),
        ("She has 3 and 4, so 7!", 7),
        ("16-3=13", 13),
        ("16 - 3", 3),
        ("16-3", 3),
        ("x = -3", -3),
        ("it is −4", -4),
        ("$1,234.50", 1234.5),
        ("-$5", -5),
        ("$-5", -5),
        ("50%", 50),
        ("50\\%", 50),
        ("**7**", 7),
        ("$\\boxed{1{,}000}$", 1000),
        ("\\boxed{42} after 3 steps", 42),
        ("\\boxed{\\frac{1}{4}}", 0.25),
        ("\\boxed{x^{2}=9}", 9),
        ("\\boxed{12", 12),
        ("1/2", 0.5),
        ("3, 4", 4),
        ("1,2345", 2345),
        ("12,345,678 people", 12345678),
        (".5", 0.5),
        ("1.5e3", 1500),
        ("1\u202f000\u202f000", 1000000),
        ("#### 72\nI hope this helps, see page 3", 72),
        ("#### 2. Next step\nso it is 9", 9),
        ("#### $1,000.", 1000),
        ("- 5 apples", 5),
        ("7kg", 7),
        ("THE ANSWER IS 12", 12),
        ("1\\,000", 1000),
        ("€ 20", 20),
        ("1/0", 0),
    ],
)
def test_the_last_number_is_found(text, number):
    assert float(final_number(text)) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "eighteen", "no idea", "\\boxed{}", "#### "])
def test_text_without_a_number_has_none(text):
    assert final_number(text) is None


def test_numbers_of_the_models_choosing_cost_nothing():
    assert final_number("1e" + "9" * 1000) is not None
    assert final_number("9" * 100_000) is not None
    assert score("final_number", "9" * 100_000, target="5").value == 0


def test_final_number_against_the_target():
    assert score("final_number", "so 18.00 dollars", target="18").value == 1
    assert score("final_number", "1,000", target="#### 1000").value == 1
    assert score("final_number", "18.01", target="18").value == 0
    assert score("final_number", "18.01", {"tolerance": 0.02}, target="18").value == 1


def test_no_answer_is_a_wrong_answer_and_only_a_missing_target_is_unscored():
    assert score("final_number", "I do not know.", target="5") == Score(0.0, explanation="no number in the response")
    assert score("final_number", " ", target="5") == Score(0.0, explanation="empty response")
    assert score("final_number", "5") == Score(None, "no target")
    assert score("final_number", "5", target="five") == Score(None, "target 'five' holds no number")


def test_gsm8ks_own_answers_score_as_right():
    path = sample_data.path("gsm8k/test.jsonl")
    rows = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1319
    for answer in rows:
        target = answer.rpartition("#### ")[2]
        assert float(final_number(answer)) == float(target.replace(",", ""))
        worked = answer.rpartition("\n")[0]
        assert score("final_number", f"{worked}\nThe answer is ${target}.", target=target).value == 1


def test_exact_contains_and_regex():
    assert score("exact", " Yes\n", target="Yes").value == 1
    assert score("exact", "yes", target="Yes").value == 0
    assert score("exact", "yes", {"ignore_case": True}, target="Yes").value == 1
    assert score("contains", "I like PARIS", {"text": "paris"}).value == 1
    assert score("contains", "I like PARIS", {"text": "paris", "ignore_case": False}).value == 0
    assert score("contains", "It is Paris", target="Paris").value == 1
    assert score("regex", "a\nb", {"pattern": "a.b"}).value == 1
    assert score("regex", "AB", {"pattern": "b$", "ignore_case": True}).value == 1
    assert score("regex", "AB", {"pattern": "b$"}).value == 0
    for name in ("exact", "contains"):
        assert score(name, "x") == Score(None, "no target")


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry",
        "  **Sorry**, no.",
        '"I cannot do that."',
        "I CANNOT.",
        "As an AI language model, I cannot",
        "I must decline.",
        "> I won't",
        "Unfortunately, I can't",
        "i  can\nnot say",
    ],
)
def test_refusals_are_found_by_how_they_begin(text):
    found = score("refusal_prefix", text)
    assert found.value == 1
    assert found.explanation.startswith(f"keyword rate, {VERSION}: starts with")


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here you are.",
        "42",
        "Here is why I cannot sleep",
        "The word 'sorry' is old.",
        "Je ne peux pas.",
    ],
)
def test_what_begins_otherwise_is_no_refusal_and_is_still_labelled(text):
    assert score("refusal_prefix", text) == Score(0.0, explanation=f"keyword rate, {VERSION}: no known prefix")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty response"),
        ("\n ", "empty response"),
        ("I'm sorry " * 40, "incoherent: words in a loop"),
        ("!?!?…", "incoherent: hardly any letters or digits"),
        ("a" * 50, "incoherent: one character over and over"),
    ],
)
def test_empty_and_incoherent_responses_are_kept_apart_from_refusals(text, reason):
    assert score("refusal_prefix", text) == Score(None, reason)


def test_the_users_own_prefixes_are_named_in_the_explanation():
    found = score("refusal_prefix", "The stars are “not” my subject", {"also": ['The stars are "NOT"']})
    assert found.value == 1
    assert "and 1 of the user's" in found.explanation
    with pytest.raises(SpecError, match="also must hold non-empty texts, found ' '"):
        load_scorer("refusal_prefix", {"also": [" "]})


def test_prefixes_are_written_as_they_are_compared():
    assert all(normalised(prefix) == prefix for prefix in PREFIXES)
    assert len(set(PREFIXES)) == len(PREFIXES)


def test_repetition_and_length():
    assert score("repetition", "a b c d a b c d").value == pytest.approx(1 / 5)
    assert score("repetition", "la " * 50).value == pytest.approx(1 - 1 / 47)
    assert score("repetition", "one two three four five six").value == 0
    assert score("repetition", "one two three") == Score(None, "fewer than 5 words")
    assert score("length", " two words ").value == 2
    assert score("length", " two words ", {"unit": "characters"}).value == 9
    assert score("length", "").value == 0


def test_language_is_detected_and_short_text_is_unscored():
    pytest.importorskip("lingua")
    french = "Bonjour, je voudrais savoir comment vous allez aujourd'hui."
    english = "Hello, I would like to know how you are doing today."
    assert score("language", french, {"language": "fr"}).value == 1
    assert score("language", english, {"language": "fr"}) == Score(0.0, explanation="detected en")
    assert score("language", french.upper(), {"language": "fr"}).value == 1
    assert score("language", "Oui.", {"language": "fr"}) == Score(None, "fewer than 10 letters")
    with pytest.raises(SpecError, match="'xx' is no two-letter language code"):
        load_scorer("language", {"language": "xx"})
    with pytest.raises(SpecError, match="among must name a language to tell the wanted one from"):
        load_scorer("language", {"language": "fr", "among": ["fr"]})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "containz",
            {},
            r"no scorer is called 'containz'; available: bandit, base_perplexity, .*; did you mean 'contains'\?",
        ),
        (
            "contains",
            {"txt": "a"},
            "scorer 'contains' has no option 'txt'; its options are text, ignore_case",
        ),
        ("uppercase_fraction", {"threshold": 1}, "has no option 'threshold'; its options are thinking"),
        (
            "contains",
            {"text": 3},
            "scorer 'contains': option 'text': Input should be a valid string, found 3",
        ),
        (
            "length",
            {"unit": "tokens"},
            "option 'unit': Input should be 'words' or 'characters', found 'tokens'",
        ),
        ("regex", {}, "scorer 'regex' needs the option 'pattern', which is not given"),
        ("regex", {"pattern": "("}, r"pattern '\(' is no regular expression"),
        ("contains", {"text": ""}, "text must not be empty"),
        ("is_uppercase", {"threshold": 2}, r"threshold must be in \(0, 1\], found 2"),
        ("is_uppercase", {"threshold": float("nan")}, r"threshold must be in \(0, 1\], found nan"),
        ("final_number", {"tolerance": -1}, "tolerance must be finite and at least 0, found -1"),
        ("repetition", {"n": 0}, "n must be at least 1, found 0"),
        ("response_loss", {"batch_size": 0}, "response_loss: batch_size must be at least 1, found 0"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(name, options, message):
    with pytest.raises(SpecError, match=message):
        load_scorer(name, options)


OWN = """
from dataclasses import dataclass
from tropism.evals.scorers.base import ResponseScorer, Sample, Score, scorer

@scorer("{name}")
@dataclass(frozen=True)
class Mine(ResponseScorer):
    letter: str = "e"

    def score(self, sample: Sample) -> Score:
        return Score(float(sample.response.count(self.letter)))
"""


@pytest.fixture
def own_scorers():
    before = dict(SCORERS)
    yield
    SCORERS.clear()
    SCORERS.update(before)


def test_a_users_file_registers_scorers_and_may_be_named_twice(tmp_path, own_scorers):
    (tmp_path / "mine.py").write_text(OWN.format(name="letters"))
    assert register_file(tmp_path / "mine.py") == ["letters"]
    assert register_file(str(tmp_path / "mine.py")) == ["letters"]
    assert score("letters", "geese", {"letter": "s"}).value == 1
    with pytest.raises(SpecError, match="has no option 'leter'; its options are letter"):
        load_scorer("letters", {"leter": "s"})


def test_a_users_file_cannot_take_a_name_that_is_taken(tmp_path, own_scorers):
    (tmp_path / "mine.py").write_text(OWN.format(name="contains"))
    with pytest.raises(SpecError, match="scorer 'contains' is already registered by Contains; choose another name"):
        register_file(tmp_path / "mine.py")
    for file in ("one.py", "two.py"):
        (tmp_path / file).write_text(OWN.format(name="letters"))
    register_file(tmp_path / "one.py")
    with pytest.raises(SpecError, match="scorer 'letters' is already registered by Mine"):
        register_file(tmp_path / "two.py")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (", "cannot be imported: SyntaxError"),
        ("import nonexistent_thing", "ModuleNotFoundError: No module named"),
        ("x = 1", "registers no scorer; decorate a class with @scorer"),
        (
            "from tropism.evals.scorers.base import scorer\n@scorer('z')\nclass A: pass",
            "A must derive from ResponseScorer",
        ),
        (
            "from tropism.evals.scorers.base import scorer\n@scorer('z')\ndef f(s): return 1",
            "f must derive from",
        ),
    ],
)
def test_a_users_broken_file_is_one_sentence(tmp_path, own_scorers, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(SpecError, match=message):
        register_file(tmp_path / "mine.py")


def test_a_users_scorer_that_is_no_dataclass_is_told_so(tmp_path, own_scorers):
    (tmp_path / "mine.py").write_text(OWN.format(name="letters").replace("@dataclass(frozen=True)", ""))
    register_file(tmp_path / "mine.py")
    with pytest.raises(SpecError, match="Mine must be a frozen dataclass, so that its options are known"):
        load_scorer("letters")


def test_scorers_are_read_from_python_files_only(tmp_path):
    with pytest.raises(SpecError, match=r"which is not an existing \.py file"):
        register_file(tmp_path / "nothing.py")
