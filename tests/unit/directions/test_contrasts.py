"""What a contrast takes, what it refuses and how it says so, and how it is cut in two."""

import pytest
import torch

import tiny
import tropism as tp
from tropism.directions.contrast_files import prompts_of
from tropism.errors import DataError

PROMPTS = [f"What is {i}?" for i in range(10)]
LOUD = [f"IT IS {i}" for i in range(10)]
QUIET = [f"It is {i}" for i in range(10)]


def pairs() -> tp.Contrast:
    return tp.Contrast.of_responses(PROMPTS, positive=LOUD, negative=QUIET)


def test_response_pairs_share_their_prompts():
    contrast = pairs()
    assert contrast.paired
    assert [p[:-1] for p in contrast.positive] == [n[:-1] for n in contrast.negative]
    assert contrast.positive[3][-1] == {"role": "assistant", "content": "IT IS 3"}


def test_prompts_may_be_chats():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    contrast = tp.Contrast.of_responses([chat], positive=["HI"], negative=["hi"])
    assert [m["role"] for m in contrast.positive[0]] == ["system", "user", "assistant"]


def test_system_prompts_lead_each_chat():
    contrast = tp.Contrast.of_system_prompts(PROMPTS, promote="Shout.", suppress="Whisper.", responses=QUIET)
    assert contrast.positive[0][0] == {"role": "system", "content": "Shout."}
    assert contrast.negative[0][0] == {"role": "system", "content": "Whisper."}
    assert contrast.has_responses
    assert not tp.Contrast.of_system_prompts(PROMPTS, promote="Shout.", suppress="Whisper.").has_responses


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tp.Contrast.of_responses([], positive=[], negative=[]), "found 0 positive and 0 negative"),
        (
            lambda: tp.Contrast.of_responses(PROMPTS, positive=LOUD[:9], negative=QUIET),
            "found 10 prompts, 9 positive and 10",
        ),
        (
            lambda: tp.Contrast.of_responses(["a"], positive=[" "], negative=["b"]),
            "positive response 0 must not be empty",
        ),
        (lambda: tp.Contrast.of_responses([""], positive=["a"], negative=["b"]), "prompt 0 must be a text or a chat"),
        (
            lambda: tp.Contrast.of_responses([[{"role": "assistant", "content": "x"}]], positive=["a"], negative=["b"]),
            "prompt 0 must end before the response",
        ),
        (lambda: tp.Contrast.of_system_prompts(PROMPTS, promote="x", suppress="x"), "promote and suppress must differ"),
        (lambda: tp.Contrast.of_system_prompts(PROMPTS, promote=" ", suppress="x"), "promote must be a text"),
        (
            lambda: tp.Contrast.of_system_prompts(
                [[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]], promote="x", suppress="y"
            ),
            "prompt 0 already has a system message",
        ),
        (lambda: tp.Contrast.of_labelled(pairs().positive, [1] * 10), "found 10 positive and 0 negative"),
        (lambda: tp.Contrast.of_labelled(pairs().positive, [1] * 8 + [0] * 2), "found 8 positive and 2 negative"),
        (lambda: tp.Contrast.of_labelled(pairs().positive, [2] * 10), "label 0 must be true or false"),
        (lambda: tp.Contrast.of_labelled(pairs().positive, [1]), "found 1 for 10 chats"),
        (lambda: tp.Contrast.of_models(pairs().positive, tuned=tiny.model()), "needs two models, or a PEFT model"),
        (lambda: pairs().split(1.0), "held_out must lie between 0 and 1"),
        (
            lambda: tp.Contrast.of_responses(["a"], positive=["A"], negative=["b"]).split(),
            "at least two different prompts",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_unbalanced_labels_are_taken_when_asked():
    contrast = tp.Contrast.of_labelled(pairs().positive, [1] * 8 + [0] * 2, allow_unbalanced=True)
    assert (len(contrast.positive), len(contrast.negative), contrast.paired) == (8, 2, False)


def test_a_pair_without_contrast_is_named(tokenizer):
    contrast = tp.Contrast.of_responses(["a", "b"], positive=["A", "same"], negative=["x", "same"])
    with pytest.raises(DataError, match="pair 1 of the contrast renders to the same token ids on both sides.*same"):
        contrast.render(tokenizer)


def test_split_keeps_a_prompt_on_one_side_and_loses_nothing():
    twice = tp.Contrast.of_responses(PROMPTS * 2, positive=LOUD * 2, negative=QUIET * 2)
    found, held = twice.split(0.3, seed=1)
    prompts = [{chat[0]["content"] for chat in part.positive} for part in (found, held)]
    assert not prompts[0] & prompts[1]
    assert (len(found), len(held)) == (14, 6)
    assert twice.split(0.3, seed=1)[1].positive == held.positive
    for part in (found, held):
        assert [p[0] for p in part.positive] == [n[0] for n in part.negative]


def test_shuffling_swaps_half_the_pairs_and_keeps_the_chats():
    contrast, shuffled = pairs(), pairs().shuffled(seed=0)
    swapped = [p != s for p, s in zip(contrast.positive, shuffled.positive, strict=True)]
    assert sum(swapped) == 5
    for p, n, sp, sn in zip(contrast.positive, contrast.negative, shuffled.positive, shuffled.negative, strict=True):
        assert (sp, sn) in ((p, n), (n, p))
    assert shuffled.about["shuffled"] == 0


def test_shuffling_labels_permutes_them():
    contrast = tp.Contrast.of_labelled([*pairs().positive, *pairs().negative], [1] * 10 + [0] * 10)
    shuffled = contrast.shuffled(seed=3)
    assert len(shuffled.positive) == len(shuffled.negative) == 10
    assert 0 < sum(chat in contrast.negative for chat in shuffled.positive) < 10


def test_a_contrast_of_models_cannot_be_shuffled():
    contrast = tp.Contrast.of_models(pairs().positive, tuned=tiny.model(), base=tiny.model(1))
    with pytest.raises(DataError, match="the label is the model"):
        contrast.shuffled(0)


def test_the_data_hash_is_of_the_chats_alone():
    assert pairs().data_hash() == pairs().data_hash()
    assert pairs().data_hash() != pairs().shuffled(0).data_hash()


def test_prompts_of_chats_drop_system_and_answer():
    chats = [
        [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    ]
    assert prompts_of(chats) == [[{"role": "user", "content": "u"}]]


def test_models_are_compared_on_the_same_tokens(tokenizer):
    contrast = tp.Contrast.of_models(pairs().positive, tuned=tiny.model(), base=tiny.model(1))
    positive, negative = contrast.render(tokenizer)
    assert [p.input_ids for p in positive] == [n.input_ids for n in negative]
    assert torch.is_tensor(next(contrast.tuned.parameters()))


def test_a_single_text_is_no_list_and_any_iterable_is_one():
    texts = ["a", "b", "c", "d"]
    same = tp.Contrast.of_responses((t for t in texts), positive=(t.upper() for t in texts), negative=iter(texts))
    assert same.positive == tp.Contrast.of_responses(texts, positive=list("ABCD"), negative=texts).positive
    prompts = {"promote": "shout", "suppress": "whisper"}
    for make, what in (
        (lambda: tp.Contrast.of_responses("abcd", positive=list("ABCD"), negative=texts), "of_responses: prompts"),
        (lambda: tp.Contrast.of_responses(texts, positive="ABCD", negative=texts), "of_responses: positive"),
        (lambda: tp.Contrast.of_system_prompts("abcd", **prompts), "of_system_prompts: prompts"),
        (lambda: tp.Contrast.of_system_prompts(texts, **prompts, responses="abcd"), "of_system_prompts: responses"),
    ):
        with pytest.raises(DataError, match=rf"Contrast\.{what} must be a list, found one "):
            make()
