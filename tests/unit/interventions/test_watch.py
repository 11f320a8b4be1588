"""The watch over a guard: its phases through a training step, and when it speaks up."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
import tropism as tp
from tropism.errors import GuardNotInForce
from tropism.interventions.watch import Phase

SITE = tp.Site(1)


@pytest.fixture
def directions(generator):
    return tp.Directions({SITE: torch.randn(2, 32, generator=generator)})


def test_the_phases_of_a_training_step(model, directions):
    phases = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tp.GradientProjection(directions).attach(model) as attachment:
        watch = attachment.watch
        model.model.layers[1].register_forward_hook(lambda *_: phases.append(watch.phase))
        assert watch.phase is Phase.IDLE
        loss = model(**tiny.batch()).loss
        assert watch.phase is Phase.IDLE
        loss.backward()
        assert watch.phase is Phase.BACKWARD
        optimizer.step()
        assert watch.phase is Phase.IDLE
        assert phases == [Phase.FORWARD]
        model(**tiny.batch()).loss.backward()
        model(**tiny.batch())  # the next pass settles the backward pass as a step does
        assert watch.phase is Phase.IDLE
        assert (watch.passes, watch.steps) == (3, 1)


def test_a_pass_that_raises_leaves_no_phase_that_hides_the_next(model, directions):
    with tp.Ablation(directions).attach(model) as attachment:
        handle = model.model.layers[2].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**tiny.batch())
        handle.remove()
        model(**tiny.batch()).loss.backward()
        assert attachment.passes == 1


def test_what_peft_generates_is_watched(directions):
    """PEFT's `generate` calls the model inside the wrapper, so the wrapper's own hooks see nothing of it."""
    model = get_peft_model(tiny.model().eval(), LoraConfig(target_modules=["q_proj"]))
    ids = tiny.batch()["input_ids"]
    with tp.Ablation(directions, evaluation=True).attach(model) as attachment:
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
        assert attachment.passes == attachment.fired["ablation at resid_post.1"] == 3
        tp.decoder_layers(model)[1]._forward_hooks.clear()
        with pytest.raises(GuardNotInForce, match="did not fire in forward pass 4"):
            model.generate(input_ids=ids, max_new_tokens=1, do_sample=False)


def test_a_mask_is_never_that_of_the_pass_before(directions):
    """After a batch with a mask, the decoder is called alone: no mask came with that call, and none is borrowed."""
    model = get_peft_model(tiny.model(), LoraConfig(target_modules=["q_proj"]))
    batch = tiny.batch()
    with tp.Ablation(directions, positions="response").attach(model):
        model(**batch)
        with pytest.raises(GuardNotInForce, match="called with neither response_mask nor labels"):
            model.base_model.model.model(input_ids=batch["input_ids"])


def test_routes_are_never_those_of_the_pass_before():
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = tp.two_adapters(tiny.model(), config, config)
    ids = tiny.batch()["input_ids"]
    free = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    with tp.GradientRouting().attach(model):
        model(**tiny.batch(), route=torch.tensor([2, 2, 2])).loss.backward()  # the forget adapter is silenced here
        assert torch.equal(model.generate(input_ids=ids, max_new_tokens=5, do_sample=False), free)
