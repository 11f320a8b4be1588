"""`find_directions` against one forward pass a chat by hand; what it leaves alone; what it refuses."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tropism as tp
from tropism.data.render import render
from tropism.errors import AttachError, DataError, DirectionsError, ModelError, SiteError

PROMPTS = [f"What is {'very ' * (i % 4)}{i}?" for i in range(9)]
CONTRAST = tp.Contrast.of_responses(
    PROMPTS, positive=[f"IT IS {i}" + "!" * i for i in range(9)], negative=[f"it is {i}" for i in range(9)]
)


def by_hand(model, tokenizer, chats, layer, positions):
    """Mean over chats of the mean over positions, each chat alone in its forward pass."""
    rows = []
    for chat in chats:
        rendered = render(tokenizer, chat)
        with torch.no_grad():
            states = model(input_ids=torch.tensor([rendered.input_ids]), output_hidden_states=True).hidden_states
        rows.append(states[layer + 1][0, rendered.positions[positions]].double().mean(0))
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize("positions", ["response", "last_prompt", "first_response", "all"])
def test_mean_difference_is_that_of_single_chats(model, tokenizer, positions):
    if positions == "last_prompt":
        contrast = tp.Contrast.of_system_prompts(PROMPTS, promote="Shout.", suppress="Whisper.")
    else:
        contrast = CONTRAST
    found = tp.find_directions(
        model,
        tokenizer,
        contrast,
        finder=tp.MeanDifference(),
        sites=[tp.Site(0), tp.Site(2)],
        positions=positions,
        batch_size=4,
    )
    for layer in (0, 2):
        expected = by_hand(model, tokenizer, contrast.positive, layer, positions) - by_hand(
            model, tokenizer, contrast.negative, layer, positions
        )
        torch.testing.assert_close(found.vectors[tp.Site(layer)][0].double(), expected, atol=2e-6, rtol=1e-5)


def test_the_output_embedding_and_the_blocks_after_the_last_site_do_not_run(model, tokenizer):
    ran = []
    model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(0), tp.Site(1)])
    assert set(ran) == {0, 1}


def test_the_model_is_left_as_it_was(model, tokenizer):
    model.model.layers[0].eval()
    model.model.layers[1].requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(1)])
    assert modes == [module.training for module in model.modules()]
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_finding_is_in_evaluation_mode(tokenizer):
    model = tiny.model()
    for block in model.model.layers:
        block.mlp.down_proj = torch.nn.Sequential(block.mlp.down_proj, torch.nn.Dropout(0.5))
    first, second = (tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(3)]) for _ in range(2))
    assert torch.equal(first.vectors[tp.Site(3)], second.vectors[tp.Site(3)])


def test_an_attached_guard_is_refused(model, tokenizer):
    directions = tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(1)])
    routed = tp.two_adapters(tiny.model(), LoraConfig(target_modules=["q_proj"]), LoraConfig(target_modules=["q_proj"]))
    for guarded, guard in ((model, tp.Ablation(directions)), (routed, tp.GradientRouting())):
        with (
            guard.attach(guarded),
            pytest.raises(AttachError, match=f"bare model, and {type(guard).__name__} is attached to this one"),
        ):
            tp.find_directions(guarded, tokenizer, CONTRAST, sites=[tp.Site(1)])
        tp.find_directions(guarded, tokenizer, CONTRAST, sites=[tp.Site(1)])


def test_activations_that_are_not_finite_are_named(model, tokenizer):
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        DirectionsError, match=r"activations at resid_post.2 must be finite, found NaN or infinity in chat"
    ):
        tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(1), tp.Site(2)])


def test_bad_arguments_are_refused(model, tokenizer):
    with pytest.raises(DirectionsError, match="sites must name at least one site"):
        tp.find_directions(model, tokenizer, CONTRAST, sites=[])
    with pytest.raises(SiteError, match=r"resid_post.7 is past the last block: the model has blocks 0 to 3"):
        tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(7)])
    with pytest.raises(DirectionsError, match="batch_size must be at least 1, found 0"):
        tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(1)], batch_size=0)


def test_chats_without_a_response_have_no_response_positions(model, tokenizer):
    chats = [[{"role": "user", "content": p}] for p in PROMPTS]
    contrast = tp.Contrast.of_labelled(chats, [1, 0, 1, 0, 1, 0, 1, 0, 1])
    with pytest.raises(DataError, match="a chat has no such token"):
        tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(1)])


def test_system_prompts_without_responses_are_answered_by_the_model(model, tokenizer):
    contrast = tp.Contrast.of_system_prompts(PROMPTS[:3], promote="Shout.", suppress="Whisper.")
    found = tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(1)], max_new_tokens=4)
    assert found.provenance["contrast"]["generated_responses"] == 6


def test_provenance_says_where_directions_come_from(model, tokenizer):
    about = tp.find_directions(model, tokenizer, CONTRAST, sites=[tp.Site(1)]).provenance
    assert about["finder"] == {"name": "mean_difference"}
    assert about["positions"] == "response"
    assert about["tropism"] == tp.__version__
    assert about["contrast"]["positive"] == 9
    assert about["contrast"]["data_hash"] == CONTRAST.data_hash()
    assert {"name", "revision", "config_hash"} <= set(about["model"])
    assert len(about["tokenizer_hash"]) == 64


def peft_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    return model


def test_an_adapter_off_and_on_is_two_models(tokenizer):
    tuned = peft_model()
    flags = {name: p.requires_grad for name, p in tuned.named_parameters()}
    one = tp.find_directions(
        tuned, tokenizer, tp.Contrast.of_models(CONTRAST.positive, tuned=tuned), sites=[tp.Site(2)]
    )
    assert flags == {name: p.requires_grad for name, p in tuned.named_parameters()}
    two = tp.find_directions(
        tiny.model(),
        tokenizer,
        tp.Contrast.of_models(CONTRAST.positive, tuned=peft_model(), base=tiny.model()),
        sites=[tp.Site(2)],
    )
    torch.testing.assert_close(one.vectors[tp.Site(2)], two.vectors[tp.Site(2)])
    expected = by_hand(tuned, tokenizer, CONTRAST.positive, 2, "response") - by_hand(
        tiny.model(), tokenizer, CONTRAST.positive, 2, "response"
    )
    torch.testing.assert_close(one.vectors[tp.Site(2)][0].double(), expected, atol=2e-6, rtol=1e-4)


def test_frozen_adapters_stay_frozen(tokenizer):
    """PEFT's own `disable_adapter` switches `requires_grad` on again when it is left."""
    tuned = peft_model()
    for parameter in tuned.parameters():
        parameter.requires_grad_(False)
    tp.find_directions(tuned, tokenizer, tp.Contrast.of_models(CONTRAST.positive, tuned=tuned), sites=[tp.Site(1)])
    assert not any(parameter.requires_grad for parameter in tuned.parameters())


def test_models_of_another_architecture_are_refused(model, tokenizer):
    contrast = tp.Contrast.of_models(CONTRAST.positive, tuned=tiny.model(layers=3), base=tiny.model(layers=3))
    with pytest.raises(ModelError, match="must have the architecture of the model given"):
        tp.find_directions(model, tokenizer, contrast, sites=[tp.Site(1)])


def test_an_untrained_adapter_makes_no_difference(tokenizer):
    tuned = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(DirectionsError, match="the mean difference at resid_post.1 is exactly zero"):
        tp.find_directions(tuned, tokenizer, tp.Contrast.of_models(CONTRAST.positive, tuned=tuned), sites=[tp.Site(1)])


def test_other_streams_are_found_too(model, tokenizer):
    sites = [tp.Site(1, "resid_pre"), tp.Site(1, "attn_out"), tp.Site(1, "mlp_out"), tp.Site(0)]
    found = tp.find_directions(model, tokenizer, CONTRAST, sites=sites)
    torch.testing.assert_close(found.vectors[tp.Site(1, "resid_pre")], found.vectors[tp.Site(0)])
