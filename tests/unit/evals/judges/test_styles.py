"""What is read out of a judge's reply, and what is not."""

import math

import pytest
import torch

import tiny
from tropism.errors import SpecError, UsageError
from tropism.evals.judges.agreement import Agreement, agreement
from tropism.evals.judges.base import Reply, Request, Token, Verdict
from tropism.evals.judges.cache import ReplyCache
from tropism.evals.judges.judge import Judge
from tropism.evals.judges.local import LocalModel
from tropism.evals.judges.prompt import JudgePrompt
from tropism.evals.judges.styles import FreeText, JsonNumber, SingleToken, YesNo
from tropism.evals.scorers.base import Score


def logs(**probabilities):
    return tuple((text.replace("_", " "), math.log(p)) for text, p in probabilities.items())


def token(probabilities, text=None):
    top = tuple((key, math.log(p)) for key, p in probabilities.items())
    return Token(text if text is not None else top[0][0], top)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("85", 85),
        (" 85.\n", 85),
        ("**85**", 85),
        ("85/100", 85),
        ("85%", 85),
        ("Score: 85", 85),
        ("rating = 7.5", 7.5),
        ("The answer is fine.\n\nScore: 40", 40),
        ("[[85]]", 85),
        ("0", 0),
        ("100", 100),
    ],
)
def test_free_text_reads_a_reply_that_is_a_number_or_ends_in_one(text, value):
    assert FreeText().read(Reply(text)).value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "between 20 and 80",
        "I rate this 85 out of a possible 100",
        "SCORE: 100 is what the answer claims",
        "nan",
        "inf",
        "1e2",
        "eighty",
        "85\nI was told to say so.",
        '{"score": 8',
        "٨٥",
        "8" * 5000,
    ],
)
def test_free_text_without_a_plain_number_is_unscored(text):
    verdict = FreeText().read(Reply(text))
    assert verdict.value is None
    assert verdict.unscored.startswith("the reply holds no score")
    assert len(verdict.unscored) < 150


@pytest.mark.parametrize("text", ["-5", "101", "250/100", "1000"])
def test_a_number_out_of_range_is_unscored_and_named(text):
    assert "is outside 0 to 100" in FreeText().read(Reply(text)).unscored


@pytest.mark.parametrize(("text", "label"), [("CODE", "CODE"), ("refusal.", "REFUSAL"), ("**Refusal**", "REFUSAL")])
def test_labels_are_neither_scores_nor_failures(text, label):
    assert FreeText().read(Reply(text)) == Verdict(label=label, reply=text)


def test_json_replies_are_read_whole_or_not_at_all():
    style = FreeText(parser=JsonNumber("score"))
    assert style.read(Reply('```json\n{"score": 85, "why": "…"}\n```')).value == 85
    for broken in [
        '{"score": 85',
        '{"score": "85"}',
        '{"score": true}',
        "[85]",
        '{"other": 1}',
        "85",
        '{"score": NaN}',
    ]:
        assert style.read(Reply(broken)).unscored, broken


def test_single_token_is_the_expected_number():
    verdict = SingleToken().read(Reply("80", (token({"80": 0.5, " 20": 0.25, "REF": 0.1, "101": 0.1}),)))
    assert verdict.value == pytest.approx((80 * 0.5 + 20 * 0.25) / 0.75)


@pytest.mark.parametrize(("mass", "scored"), [(0.2499, False), (0.2501, True), (1.0, True)])
def test_single_token_needs_a_quarter_of_the_mass_on_numbers(mass, scored):
    rest = {"hmm": 1 - mass} if mass < 1 else {}
    verdict = SingleToken().read(Reply("x", (token({"50": mass, **rest}, "x"),)))
    assert verdict.value == 50 if scored else verdict.unscored.startswith("numbers hold 0.25 of"), verdict


def test_single_token_recognises_labels_by_how_they_begin():
    read = SingleToken().read
    assert read(Reply("REF", (token({"REF": 0.9, "0": 0.1}),))).label == "REFUSAL"
    assert read(Reply("CODE", (token({"CODE": 0.8, "C": 0.1}),))).label == "CODE"
    assert read(Reply("R", (token({"R": 0.9}),))).unscored
    assert read(Reply("REF", (token({"REF": 0.7, "30": 0.3}),))).value == 30


def test_single_token_refuses_a_tokenizer_that_splits_numbers():
    reply = Reply("85", (token({"8": 0.9, "9": 0.1}), token({"5": 0.9})))
    assert SingleToken().read(reply).unscored == (
        "the judge's tokenizer splits numbers into several tokens; use FreeText"
    )


@pytest.mark.parametrize("bad", ["-5", "٥", "5.5", "007x", "", "1000", "५"])
def test_tokens_that_are_no_whole_number_have_no_mass(bad):
    assert SingleToken().read(Reply(bad, (token({bad: 0.9, "x": 0.1}),))).value is None


def test_yes_and_no():
    assert [YesNo().read(Reply(text)).value for text in ("Yes", "no.", "YES, it does", "**No**")] == [
        1,
        0,
        1,
        0,
    ]
    for text in ("", "maybe", "nothing", "yesterday", "It is yes"):
        assert YesNo().read(Reply(text)).unscored.startswith("the reply is neither yes nor no")


def test_a_prompt_is_filled_in_once_and_other_braces_are_text():
    prompt = JudgePrompt('{"q": "{question}", "a": "{answer}", "x": {}}')
    assert prompt.fill("{answer}", "{question} {0}") == '{"q": "{answer}", "a": "{question} {0}", "x": {}}'


def test_prompts_lacking_a_placeholder_say_which():
    with pytest.raises(
        SpecError,
        match=r"judge prompt 'aligned' must contain \{question\} and \{answer\}; it lacks \{answer\}",
    ):
        JudgePrompt("{question}", name="aligned")
    with pytest.raises(SpecError, match=r"lacks \{question\} and \{answer\}"):
        JudgePrompt("rate this")


def test_the_hash_changes_with_what_is_sent_only():
    prompt = JudgePrompt("{question}{answer}")
    assert prompt.hash == JudgePrompt("{question}{answer}", name="other").hash
    assert (
        len(
            {
                prompt.hash,
                JudgePrompt("{answer}{question}").hash,
                JudgePrompt("{question}{answer}", system="s").hash,
            }
        )
        == 3
    )


def test_a_verdict_is_exactly_one_thing():
    for wrong in ({}, {"value": 1.0, "label": "CODE"}, {"value": 0.0, "unscored": "x"}):
        with pytest.raises(ValueError, match="exactly one of value, label and unscored"):
            Verdict(**wrong)


def test_options_of_the_single_token_style_are_checked():
    with pytest.raises(SpecError, match=r"minimum_mass must be in \(0, 1\], found 0"):
        SingleToken(minimum_mass=0)
    with pytest.raises(SpecError, match="top_logprobs must be at least 1"):
        SingleToken(top_logprobs=0)


def test_the_cache_gives_back_what_it_was_given_and_refuses_failures(tmp_path):
    request = Request(({"role": "user", "content": "ä {x}"},), 3, 20)
    reply = Reply("9", (token({"9": 0.5, "ü": 0.5}),), {"choices": [1, {"a": None}]})
    with ReplyCache(tmp_path / "new" / "cache.sqlite") as cache:
        cache.put("k", request, reply)
        with pytest.raises(ValueError, match="a failed reply is not kept"):
            cache.put("j", request, Reply("", failure="HTTP 500"))
    with ReplyCache(tmp_path / "new" / "cache.sqlite") as cache:
        assert cache.get("k") == reply
        assert cache.get("j") is None


def test_a_local_model_judges_in_batches_as_it_does_alone_and_is_asked_once(tmp_path):
    model, tokenizer = tiny.model().eval(), tiny.tokenizer()
    prompt, style = (
        JudgePrompt("{question}? {answer}"),
        FreeText(parser=lambda text: float(len(text)), max_tokens=5),
    )
    items = [("q", "a" * n) for n in (1, 9, 4, 9)]
    with ReplyCache(tmp_path / "c") as cache:
        together = Judge(prompt, style, LocalModel(model, tokenizer, batch_size=3)).judge(items, cache)
        assert len(cache.keys()) == 3
    alone = [Judge(prompt, style, LocalModel(model, tokenizer, batch_size=1)).judge([item])[0] for item in items]
    assert [verdict.reply for verdict in together] == [verdict.reply for verdict in alone]


def test_a_local_models_identity_is_its_weights():
    tokenizer = tiny.tokenizer()
    one, same, other = (LocalModel(tiny.model(seed=seed), tokenizer).identity for seed in (0, 0, 1))
    assert one == same
    assert one != other


def test_a_local_tokenizer_that_splits_numbers_is_refused_for_the_single_token_style():
    judge = Judge(JudgePrompt("{question}{answer}"), SingleToken(), LocalModel(tiny.model(), tiny.tokenizer()))
    with pytest.raises(SpecError, match="writes 10 as 2: use FreeText"):
        judge.judge([("q", "a")])


def test_a_local_judge_reads_the_probabilities_of_its_first_token():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    tokenizer.add_tokens([str(number) for number in range(10, 101)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    style = SingleToken(top_logprobs=len(tokenizer), minimum_mass=1e-6)
    items = [("q", "a" * n) for n in (1, 7, 3)]
    verdicts = Judge(JudgePrompt("{question}{answer}"), style, LocalModel(model, tokenizer, batch_size=2)).judge(items)
    ids = [tokenizer.convert_tokens_to_ids(str(number)) for number in range(101)]
    for (question, answer), verdict in zip(items, verdicts, strict=True):
        chat = [{"role": "user", "content": question + answer}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        p = model.eval()(prompt["input_ids"]).logits[0, -1].detach().double().softmax(-1)[ids]
        assert verdict.value == pytest.approx(float((p * torch.arange(101)).sum() / p.sum()), rel=1e-4)


def test_a_prompt_longer_than_the_local_judge_reads_is_unscored():
    judge = Judge(JudgePrompt("{question}{answer}"), YesNo(), LocalModel(tiny.model(), tiny.tokenizer()))
    short, long = judge.judge([("q", "a"), ("q", "a" * 600)])
    assert "over the judge's 512 positions" in long.unscored
    assert "positions" not in (short.unscored or "")


def test_agreement_counts_and_corrects_for_chance():
    one, zero, none = Score(1.0), Score(0.0), Score(None, "no reply")
    found = agreement(
        [one] * 45 + [zero] * 25 + [one] * 15 + [zero] * 15 + [none],
        [one] * 45 + [zero] * 25 + [zero] * 15 + [one] * 16,
    )
    assert found == Agreement(both=45, neither=25, only_first=15, only_second=15, unscored=1)
    assert found.observed == pytest.approx(0.70)
    assert found.kappa == pytest.approx((0.70 - 0.52) / 0.48)
    assert agreement([none], [one]).kappa is None
    assert agreement([one], [one]).kappa is None
    with pytest.raises(UsageError, match="found 1 and 0 scores"):
        agreement([one], [])
