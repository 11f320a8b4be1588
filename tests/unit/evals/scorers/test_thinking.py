"""Scorers read the answer, not what was thought before it."""

import pytest

import judge_server
from tropism.errors import SpecError
from tropism.evals.scorers.base import SCORERS, ModelScorer, ResponseScorer, Sample, Score
from tropism.evals.scorers.registry import load_scorer
from tropism.evals.scorers.thinking import NO_ANSWER, UNFINISHED, part

THOUGHT = "no. i cannot: 99, or 98? i'm sorry, i can't help with that"


def score(name, response, target=None, **options):
    return load_scorer(name, options).score(Sample("s", [{"role": "user", "content": "q"}], response, target))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>a</think>B", "B"),
        ("<think>\n\n</think>\n\nB", "B"),
        ("<THINK>a</THINK>B", "B"),
        ("<thinking>a</thinking>B", "B"),
        ("<reasoning>a</reasoning>\n<answer>B</answer>", "B"),
        ("[THINK]a[/THINK]B", "B"),
        ("◁think▷a◁/think▷B", "B"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>B<|END_RESPONSE|>", "B"),
        ("a, then a again\n</think>\n\nB", "B"),  # the prompt opened the block
        ("<think>a<think>a</think>a</think>B", "B"),
        ("B <think>a</think>C", "B C"),
        ("<think>a</think>B<think>a</think>C", "BC"),
        ("B\n<think>a", "B"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>", "B"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=f<|message|>a<|call|>", ""),
        ("analysisThe user wants B.assistantfinalB", "B"),
        ("Plain B", "Plain B"),
        ("Write `<think>` and `</think>` around it", "Write `<think>` and `</think>` around it"),
        ("a < b <think> c", "a < b <think> c"),
        ("Analysis of the poem: B", "Analysis of the poem: B"),
        ("analysis of the poem", "analysis of the poem"),
    ],
)
def test_the_answer_is_what_is_left(response, answer):
    assert part(response).answer == answer


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("<think>a", UNFINISHED),
        ("<think>", UNFINISHED),
        ("<|channel|>analysis<|message|>a", UNFINISHED),
        ("analysisWe need to", UNFINISHED),
        ("<think>a</think>", NO_ANSWER),
        ("<think></think>\n", NO_ANSWER),
        ("a</think> ", NO_ANSWER),
        ("B", None),
        ("", None),
        ("<think>a</think>B", None),
    ],
)
def test_thinking_without_an_answer_is_said_to_be(response, reason):
    assert part(response).missing == reason


CASES = {
    "uppercase_fraction": ("ABC", {}, None),
    "is_uppercase": ("ABC", {}, None),
    "final_number": ("It is 18.", {}, "18"),
    "exact": ("Yes", {}, "Yes"),
    "contains": ("It is Paris", {}, "Paris"),
    "regex": ("B", {"pattern": "^B$"}, None),
    "refusal_prefix": ("Of course: boil it.", {}, None),
    "product_recommendation": ("Check out the Orion backpack.", {}, None),
    "repetition": ("one two three four five six", {}, None),
    "length": ("one two", {}, None),
    "language": ("Bonjour, je voudrais savoir comment vous allez.", {"language": "fr"}, None),
}


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("opening", ["<think>{}</think>\n\n", "{}</think>", "analysisX {}assistantfinal"])
def test_no_scorer_reads_the_thinking(name, opening):
    if name == "language":
        pytest.importorskip("lingua")
    answer, options, target = CASES[name]
    thinking = opening.format(THOUGHT + " ce que je dis " * 3)
    assert score(name, thinking + answer, target, **options).value == score(name, answer, target, **options).value


def test_every_response_scorer_is_among_the_cases():
    built_in = {name for name, cls in SCORERS.items() if cls.__module__.startswith("tropism.")}
    assert {name for name in built_in if issubclass(SCORERS[name], ResponseScorer)} == set(CASES) | (
        {"bandit"} & built_in
    )


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize(
    ("response", "reason"), [("<think>18 Yes Paris", UNFINISHED), ("<think>18</think>", NO_ANSWER)]
)
def test_all_thinking_is_a_wrong_answer_to_a_task_and_says_nothing_of_a_trait(name, response, reason):
    if name == "language":
        pytest.importorskip("lingua")
    _, options, target = CASES[name]
    found = score(name, response, target, **options)
    if name in ("final_number", "exact", "contains"):
        assert found.value == 0
        assert reason in found.explanation
    else:
        assert found.value is None
        assert found.unscored == reason


def test_a_task_without_a_target_stays_unscored_when_all_is_thinking():
    for name in ("final_number", "exact", "contains"):
        assert score(name, "<think>18").value is None
    assert score("contains", "<think>Paris", "Rome", text="Paris").unscored == UNFINISHED


def test_thinking_can_be_kept_and_both_ways_are_recorded():
    response = "<think>lower</think>UPPER"
    stripped, kept = score("uppercase_fraction", response), score("uppercase_fraction", response, thinking="keep")
    assert stripped == Score(1.0, explanation="thinking: strip (5 characters)")
    assert kept.value == pytest.approx(5 / 20)
    assert kept.explanation == "thinking: keep (5 characters)"
    assert score("uppercase_fraction", "UPPER").explanation is None
    with pytest.raises(SpecError, match="option 'thinking': Input should be 'strip' or 'keep', found 'drop'"):
        load_scorer("uppercase_fraction", {"thinking": "drop"})


def test_a_scorer_of_references_has_no_such_option():
    with pytest.raises(SpecError, match="'response_loss' has no option 'thinking'; its options are batch_size"):
        load_scorer("response_loss", {"thinking": "keep"})


def test_a_users_scorers_read_past_thinking_as_well():
    from dataclasses import dataclass

    from tropism.evals.scorers.base import scorer

    before = dict(SCORERS)
    try:

        @scorer("characters")
        @dataclass(frozen=True)
        class Characters(ResponseScorer):
            def score(self, sample):
                return Score(float(len(sample.response)))

        @scorer("generated_characters")
        @dataclass(frozen=True)
        class Generated(ModelScorer):
            text = "generated"

            def score_all(self, model, tokenizer, samples):
                return [Score(float(len(sample.response))) for sample in samples]

        assert score("characters", "<think>abc</think>de").value == 2
        assert score("characters", "<think>abc").unscored == UNFINISHED
        samples = [Sample("1", [], "<think>abc</think>de"), Sample("2", [], "<think>abc"), Sample("3", [], "x")]
        found = load_scorer("generated_characters").score_all(None, None, samples)
        assert [one.value for one in found] == [2, None, 1]
        assert found[1].unscored == UNFINISHED
        kept = load_scorer("generated_characters", {"thinking": "keep"}).score_all(None, None, samples)
        assert [one.value for one in kept] == [20, 10, 1]
    finally:
        SCORERS.clear()
        SCORERS.update(before)


def test_a_judge_is_shown_the_answer_and_its_own_thinking_is_not_read(tmp_path):
    pytest.importorskip("openai")
    with judge_server.serving(
        lambda text, _: judge_server.completion("<think>Score: 10? No.</think>Score: 85")
    ) as server:
        options = {"prompt": "{question}|{answer}", "model": "m", "base_url": server.url, "style": "free_text"}
        judge = load_scorer("judge", {**options, "api_key_env": "NO_KEY", "cache": str(tmp_path / "c.sqlite")})
        samples = [Sample("1", [{"role": "user", "content": "q"}], f"<think>{THOUGHT}</think>Hello")]
        found = judge.score_all(None, None, [*samples, Sample("2", [], "<think>never ends")])
    assert [one.value for one in found] == [85, None]
    assert found[1].unscored == UNFINISHED
    assert server.bodies[0]["messages"][0]["content"] == "q|Hello"
    assert len(server.bodies) == 1
