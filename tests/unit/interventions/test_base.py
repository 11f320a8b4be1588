"""Attaching and detaching, composition, evaluation, and the check that a guard is in force."""

import copy
import pickle
import sys
import types
from functools import partial, wraps

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.utils.checkpoint import checkpoint

import architectures
import tiny
import tropism as tp
from hand_edits import edited_blocks, gradients, inside_checkpoint
from tropism.directions import provenance
from tropism.errors import AttachError, DirectionsMismatch, GuardNotInForce, SiteError
from tropism.interventions.base import attachments

SITE = tp.Site(1)


@pytest.fixture
def directions(generator):
    return tp.Directions({SITE: torch.randn(2, 32, generator=generator)})


@pytest.fixture
def vector(generator):
    return tp.Directions({SITE: torch.randn(32, generator=generator)})


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def every_guard(directions, vector):
    return [
        tp.Ablation(directions, positions="response"),
        tp.GradientProjection(directions, positions="response"),
        tp.Steering(vector),
        tp.Ablation(directions) | tp.GradientProjection(directions) | tp.Steering(vector),
    ]


# --- attaching and detaching ---


def test_hooks_are_gone_afterwards_also_after_an_exception(model, directions, vector):
    batch = tiny.batch()
    before, kept = model(**batch).logits, hooks_on(model)
    optimizer_hooks = len(_global_optimizer_pre_hooks)
    for guard in every_guard(directions, vector):
        with guard.attach(model) as attachment:
            assert hooks_on(model) > kept
            assert list(attachments(model)) == [attachment]
            model(**batch).loss.backward()
        with pytest.raises(ZeroDivisionError, match="in the loop"), guard.attach(model):
            model(**batch)
            raise ZeroDivisionError("in the loop")
        assert hooks_on(model) == kept
        assert list(attachments(model)) == []
        assert len(_global_optimizer_pre_hooks) == optimizer_hooks
        assert torch.equal(model(**batch).logits, before)


def test_a_guard_that_cannot_be_installed_leaves_nothing_behind(model, directions):
    far = tp.Directions({SITE: directions.vectors[SITE], tp.Site(9): torch.ones(32)})
    for guard in (
        tp.Ablation(far),
        tp.GradientProjection(far),
        tp.Steering(tp.Directions({tp.Site(9): torch.ones(32)})),
    ):
        with pytest.raises(SiteError, match="resid_post.9 is past the last block: the model has blocks 0 to 3"):
            guard.attach(model).__enter__()
        assert hooks_on(model) == 0
        assert list(attachments(model)) == []


def test_directions_of_another_model(model):
    narrow = tp.Directions({SITE: torch.ones(16)})
    for guard in (tp.Ablation(narrow), tp.GradientProjection(narrow), tp.Steering(narrow)):
        with pytest.raises(DirectionsMismatch, match="16 wide and the model .* is 32 wide"), guard.attach(model):
            pass
    other = tp.Directions({SITE: torch.ones(32)}, {"model": provenance.of_model(tiny.model(layers=2))})
    with (
        pytest.raises(DirectionsMismatch, match="found on .* find them on this model"),
        tp.Ablation(other).attach(model),
    ):
        pass


def test_the_same_guard_twice(model, directions):
    guard = tp.Ablation(directions)
    message = "this Ablation is already attached to this model; attach it once"
    with guard.attach(model):
        for again in (guard, guard | tp.GradientProjection(directions)):
            with pytest.raises(AttachError, match=message), again.attach(model):
                pass
        model(**tiny.batch())
    with pytest.raises(AttachError, match=message), (guard | guard).attach(model):
        pass
    with guard.attach(model):  # one after the other is well
        model(**tiny.batch())


def test_the_same_guard_on_a_model_and_inside_its_wrapper(directions):
    lora = architectures.build("llama", lora=True)
    guard = tp.Ablation(tp.Directions({SITE: torch.ones(16)}))
    with guard.attach(lora):
        with pytest.raises(AttachError, match="already attached"), guard.attach(lora.base_model.model):
            pass
        lora(**architectures.batch())


def test_detaching_out_of_order(model, directions):
    outer = tp.Ablation(directions).attach(model)
    inner = tp.GradientProjection(directions).attach(model)
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(AttachError, match="Ablation was detached out of order: detach the last attached first"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert hooks_on(model) == 0


def test_an_attachment_begins_again(model, directions):
    attachment = tp.GradientProjection(directions).attach(model)
    for _ in range(2):
        with attachment:
            model(**tiny.batch()).loss.backward()
            assert attachment.passes == 1
            assert attachment.fired == {"gradient projection at resid_post.1": 1}


# --- composition ---


def test_the_left_guard_edits_first(model, directions, vector):
    """`a | b` at one site, and `a` attached around `b`, are `b(a(h))`."""
    batch = tiny.batch()
    v, V = vector.vectors[SITE], directions.basis(SITE)
    steer_then_ablate = lambda h: h + v - (h + v) @ V.T @ V  # noqa: E731
    ablate_then_steer = lambda h: h - h @ V.T @ V + v  # noqa: E731
    steering, ablation = tp.Steering(vector), tp.Ablation(directions)
    for first, second, edit in ((steering, ablation, steer_then_ablate), (ablation, steering, ablate_then_steer)):
        with edited_blocks(model, {1: edit}):
            wanted = model(**batch).logits
        with (first | second).attach(model):
            torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-4, rtol=1e-4)
        with first.attach(model), second.attach(model):
            torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-4, rtol=1e-4)


def test_gradients_meet_the_guards_from_right_to_left(model, directions, generator):
    """`P | A`, where the gradient is projected below the ablation, is not `A | P`."""
    other = tp.Directions({SITE: torch.randn(2, 32, generator=generator)})
    batch = tiny.batch()

    def below(*guards):
        guard = guards[0] if len(guards) == 1 else guards[0] | guards[1]
        with tp.capture(model, [SITE]) as acts, guard.attach(model):
            loss = model(**batch).loss
            h = acts[SITE]
            return torch.autograd.grad(loss, h)[0]  # as `h` leaves the block, below every guard

    V, U = directions.basis(SITE), other.basis(SITE)
    ablation, projection = tp.Ablation(directions), tp.GradientProjection(other)
    g = below(tp.Ablation(directions, mode="forward"))  # what reaches the edited activation
    out = lambda g, B: g - g @ B.T @ B  # noqa: E731
    torch.testing.assert_close(below(projection, ablation), out(out(g, V), U), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(below(ablation, projection), out(out(g, U), V), atol=1e-5, rtol=1e-4)


def test_a_composition_is_its_parts(directions, vector):
    a, b, c = tp.Ablation(directions), tp.GradientProjection(directions, positions="response"), tp.Steering(vector)
    assert ((a | b) | c).parts() == (a | (b | c)).parts() == (a, b, c)
    assert (a | b).batch_keys == {"response_mask"}
    assert (a | b).place == "activations"
    assert (a | b).at_evaluation == (
        "Ablation: off at evaluation once training has begun; "
        "GradientProjection: changes nothing at evaluation: it acts on backward passes only"
    )


# --- evaluation ---


@pytest.mark.parametrize("evaluation", [None, True, False])
def test_when_a_guard_acts(model, directions, evaluation):
    batch = tiny.batch()
    plain = model(**batch).logits  # no dropout: the same in both modes
    guard = tp.Ablation(directions, evaluation=evaluation)
    edited = lambda: not torch.equal(model(**batch).logits, plain)  # noqa: E731
    with guard.attach(model.eval()):
        assert edited() is (evaluation is not False)
        assert edited() is (evaluation is not False)
        model.train()
        assert edited()
        model.eval()
        assert edited() is (evaluation is True)
        model.train()
        assert edited()
    with guard.attach(model.train()):
        model.eval()
        assert edited() is (evaluation is True)
    with guard.attach(model) as attachment:
        attachment.begin_training()
        assert edited() is (evaluation is True)
    assert (
        guard.at_evaluation
        == {
            None: "off at evaluation once training has begun",
            True: "acts at evaluation too",
            False: "off in evaluation mode",
        }[evaluation]
    )


# --- in force or loud ---


def test_hooks_that_somebody_removed(model, directions):
    with (
        pytest.raises(GuardNotInForce, match="ablation at resid_post.1 did not fire in forward pass 2; likely causes"),
        tp.Ablation(directions).attach(model),
    ):
        model(**tiny.batch())
        model.model.layers[1]._forward_hooks.clear()
        model(**tiny.batch())


def test_a_block_that_a_fused_kernel_bypasses(model, directions, vector):
    original = model.model.layers[1]
    model.model.layers[1].__class__ = type(
        "Fused", (type(original),), {"__call__": lambda self, *a, **k: self.forward(*a, **k)}
    )
    for guard, message in (
        (tp.Ablation(directions), "Ablation is not in force: ablation at resid_post.1 did not fire in forward pass 1"),
        (tp.Steering(vector), "steering at resid_post.1 did not fire"),
        (tp.GradientProjection(directions), "no gradient can reach gradient projection at resid_post.1"),
    ):
        with pytest.raises(GuardNotInForce, match=message), guard.attach(model):
            model(**tiny.batch())


def test_a_copy_of_a_guarded_model_is_plain(model, directions, vector):
    batch = tiny.batch()
    plain = {"input_ids": batch["input_ids"][:1, :4]}
    logits, answer = model(**batch).logits, model.generate(**plain, max_new_tokens=3, do_sample=False)
    spared = {"spare": ["rollouts"]}  # replaces the model's `generate` while it is attached
    for guard, options in [*((guard, {}) for guard in every_guard(directions, vector)), (tp.Steering(vector), spared)]:
        with guard.attach(model, **options) as attachment:
            model(**batch).loss.backward()
            fired, passes = dict(attachment.fired), attachment.passes
            for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                torch.testing.assert_close(copied(**batch).logits, logits)
                assert copied.generate.__self__ is copied
                torch.testing.assert_close(copied.generate(**plain, max_new_tokens=3, do_sample=False), answer)
            assert attachment.fired == fired
            assert attachment.passes == passes
            assert not torch.allclose(model(**batch).logits, logits) or isinstance(guard, tp.GradientProjection)
    assert model.generate.__self__ is model


def test_another_copy_was_trained(model, directions):
    other = tiny.model()
    optimizer = torch.optim.SGD(other.parameters())
    for guard in (tp.Ablation(directions), tp.GradientProjection(directions)):
        with (
            pytest.raises(GuardNotInForce, match="never ran; attach it to the model that is trained"),
            guard.attach(model),
        ):
            other(**tiny.batch()).loss.backward()
            with pytest.warns(UserWarning, match="steps and the model that the guard is attached to has not run yet"):
                optimizer.step()
    with tp.Ablation(directions).attach(model):
        pass  # nothing ran and nothing was promised


def test_the_check_does_not_hide_the_exception_in_the_loop(model, directions):
    with pytest.raises(KeyError, match="mine"), tp.GradientProjection(directions).attach(model):
        model(**tiny.batch()).loss.backward()
        model.model.layers[1]._forward_hooks.clear()
        raise KeyError("mine")


def test_reentrant_checkpointing_is_refused_with_the_reason(model, directions):
    guard = tp.GradientProjection(directions)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with (
        pytest.raises(AttachError, match="cannot be attached under reentrant .*'use_reentrant': False"),
        guard.attach(model),
    ):
        pass
    model.gradient_checkpointing_disable()
    with guard.attach(model):  # a trainer switches it on later
        model.gradient_checkpointing_enable({"use_reentrant": True})
        with pytest.raises(AttachError, match="GradientProjection cannot guard this training under reentrant"):
            model(**tiny.batch())


def test_checkpointing_that_is_reentrant_whatever_it_is_told(model, directions):
    """Unsloth's and Axolotl's offloading checkpoints take `use_reentrant` and ignore it."""

    def offloaded(function, *args, use_reentrant=None):
        raise AssertionError

    offloaded.__module__ = "unsloth_zoo.gradient_checkpointing"
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model._gradient_checkpointing_func = partial(offloaded, use_reentrant=False)
    with pytest.raises(AttachError, match="the kinds that Unsloth and Axolotl bring.*are reentrant too"):
        tp.Ablation(directions).attach(model).__enter__()
    model.model._gradient_checkpointing_func = partial(checkpoint)  # torch's default
    with pytest.raises(AttachError, match="reentrant"):
        tp.Ablation(directions).attach(model).__enter__()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_hidden_in_a_closure(model, directions):
    """LLaMA-Factory's: the function that transformers is given wraps the checkpoint, with `functools.wraps` or without."""

    def closure(inner, keep_name):
        def custom_gradient_checkpointing_func(function, *args, **kwargs):
            return inner(function, *args, **kwargs)

        return wraps(inner)(custom_gradient_checkpointing_func) if keep_name else custom_gradient_checkpointing_func

    guard = tp.Ablation(directions)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = closure(partial(checkpoint, use_reentrant=True), True)
    with pytest.raises(AttachError, match="cannot be attached under reentrant .*use_reentrant_gc: false"):
        guard.attach(model).__enter__()
    for reentrant in (True, False):
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = closure(partial(checkpoint, use_reentrant=reentrant), False)
        with guard.attach(model):
            if reentrant:
                with pytest.raises(AttachError, match="Ablation cannot guard this training under reentrant"):
                    model(**tiny.batch())
            else:
                model(**tiny.batch()).loss.backward()
            with torch.no_grad():
                model(**tiny.batch())


def test_an_autograd_function_that_checkpoints(model, directions):
    class Offloading(torch.autograd.Function):
        pass

    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model._gradient_checkpointing_func = Offloading.apply
    with pytest.raises(AttachError, match="under reentrant gradient checkpointing"):
        tp.Ablation(directions).attach(model).__enter__()


def test_fsdp1_and_deepspeed_are_refused_with_the_reason(model, directions, monkeypatch):
    wrapper = type("FullyShardedDataParallel", (nn.Module,), {})
    engine = type("DeepSpeedEngine", (nn.Module,), {"__module__": "deepspeed.runtime.engine"})
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    guard = tp.Ablation(directions)
    for kind, message in ((wrapper, "under FSDP1: .*use FSDP2"), (engine, "under DeepSpeed: .*use DDP or FSDP2")):
        wrapped = kind()
        wrapped.module = model
        with pytest.raises(AttachError, match=message), guard.attach(wrapped):
            pass
    for mark, message in (("_fsdp_flattened", "under FSDP1"), ("ds_id", "under DeepSpeed")):
        parameter = next(model.parameters())
        setattr(parameter, mark, 1)
        with pytest.raises(AttachError, match=message), guard.attach(model):
            pass
        delattr(parameter, mark)


# --- checkpointing ---


@pytest.mark.parametrize("stream", ["resid_post", "resid_pre", "attn_out", "mlp_out"])
@pytest.mark.parametrize("version", ["5.23", "5.22"])
def test_a_block_run_twice_is_guarded_once(stream, version, generator):
    """Same gradients, same readings, same counts as without checkpointing, also with two passes before one backward."""
    site = tp.Site(1, stream)
    d = tp.Directions({site: torch.randn(2, 32, generator=generator)})
    v = tp.Directions({site: torch.randn(32, generator=generator)})
    a, b = tiny.batch(), tiny.batch(seed=1)
    b["labels"] = b["input_ids"]
    for guard in every_guard(d, v):
        plain, twice = tiny.model().double(), tiny.model().double()
        if version == "5.22":
            inside_checkpoint(twice)
        else:
            twice.gradient_checkpointing_enable({"use_reentrant": False})
        told = []
        for model in (plain, twice):
            with guard.attach(model) as attachment:
                with torch.no_grad():
                    model(**b)  # never recomputed, so that counting a recomputation would tilt the readings
                (model(**a).loss + model(**b).loss).backward()
                told.append((attachment.readings(), attachment.fired))
        assert told[1][1] == told[0][1]
        assert told[1][0] == pytest.approx(told[0][0], rel=1e-6)
        for p, q in zip(plain.parameters(), twice.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, atol=1e-12, rtol=1e-9)


def test_detached_between_forward_and_backward_under_checkpointing(model, directions):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with tp.Ablation(directions).attach(model):
        loss = model(**tiny.batch()).loss
    with pytest.raises(GuardNotInForce, match="detached between a forward pass and its backward.*until after backward"):
        loss.backward()


def test_guards_on_submodules_without_any_gradient(generator):
    """The capture of a guarded generation: nothing to project, nothing to complain about."""
    model = tiny.model().eval()
    d = tp.Directions({SITE: torch.randn(2, 32, generator=generator)})
    with (tp.Ablation(d) | tp.GradientProjection(d)).attach(model):
        out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
    assert out.shape == (1, 6)


def test_gradients_without_a_guard_are_untouched_by_a_guard_before(model, directions):
    batch = tiny.batch()
    _, before = gradients(model, batch)
    with tp.GradientProjection(directions).attach(model):
        gradients(model, batch)
    _, after = gradients(model, batch)
    assert all(torch.equal(before[name], after[name]) for name in before)
