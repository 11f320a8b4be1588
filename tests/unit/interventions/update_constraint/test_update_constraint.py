"""The update constraint's options, order of a step, state and errors; its theorems are in properties/."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import tiny
import tropism as tp
from naive_constraint import (
    delta_weights,
    dense_direction,
    factors,
    layers,
    lora,
    naive_leak,
    train,
    trainable,
)
from tropism.errors import (
    AttachError,
    DirectionsError,
    DirectionsMismatch,
    GuardNotInForce,
    LeakExceeded,
    UsageError,
)
from tropism.interventions.update_constraint import constraint_of
from tropism.interventions.update_constraint.guard import steppable


@pytest.fixture(scope="module")
def learned():
    model = lora(seed=1)
    train(model, AdamW(trainable(model), lr=1e-2), steps=15, seed=9)
    return model


@pytest.fixture(scope="module")
def u(learned):
    return tp.parameter_directions(learned)


def adamw(model):
    return AdamW(trainable(model), lr=1e-2, weight_decay=0.1)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def after(steps=8, guard=None, seed=9, make=adamw):
    model = lora(seed=2)
    optimizer = make(model)
    if guard is None:
        train(model, optimizer, steps, seed=seed)
        return model
    with guard.attach(model, optimizer=optimizer):
        train(model, optimizer, steps, seed=seed)
    return model


# --- zero rank and strength ---


@pytest.mark.parametrize("space", ["delta_weight", "parameter"])
def test_directions_of_zero_rank_are_bit_identical_to_no_guard(space):
    empty = {
        name: (torch.zeros(w.shape[0], 0), torch.zeros(0, w.shape[1])) for name, w in delta_weights(lora()).items()
    }
    guard = tp.UpdateConstraint(tp.ParameterDirections.of_factors(empty), space=space)
    assert equal(after(guard=guard), after())


def test_soft_of_strength_zero_is_no_guard_and_of_one_is_equality(u):
    assert equal(after(guard=tp.UpdateConstraint(u, mode="soft", strength=0.0)), after())
    assert equal(after(guard=tp.UpdateConstraint(u, mode="soft")), after(guard=tp.UpdateConstraint(u)))


def test_soft_lets_through_less_the_stronger_it_is(u):
    start = delta_weights(lora(seed=2))
    leaks = []
    for strength in (0.0, 0.3, 0.9):
        model = after(guard=tp.UpdateConstraint(u, mode="soft", strength=strength))
        leaks.append(naive_leak({n: w - start[n] for n, w in delta_weights(model).items()}, dense_direction(u)))
    assert leaks[0] > 2 * leaks[1] > 4 * leaks[2] > 0


# --- one-sided ---


def pushed(u, sign, mode):
    """Ten steps of SGD on the loss `−sign·⟨U, ΔW⟩`, and how far each weight went along the direction."""
    model = lora(seed=2)
    U = {name: dense.float() for name, dense in dense_direction(u).items()}
    optimizer = SGD(trainable(model), lr=0.05, momentum=0.9)
    guard = tp.UpdateConstraint(u, mode=mode) if mode else tp.UpdateConstraint(u, mode="soft", strength=0.0)
    with guard.attach(model, optimizer=optimizer):
        for _ in range(10):
            optimizer.zero_grad()
            loss = torch.zeros(())
            for name, module in layers(model).items():
                delta = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
                loss = loss - sign * (U[name] * delta).sum() + 0.001 * delta.sum()
            loss.backward()
            optimizer.step()
    return {name: float((U[name].double() * delta).sum()) for name, delta in delta_weights(model).items()}


def test_one_sided_forbids_motion_against_the_direction_and_allows_motion_along_it(u):
    assert all(along > 1e-3 for along in pushed(u, +1, "one_sided").values())
    assert all(along > -1e-6 for along in pushed(u, -1, "one_sided").values())
    assert all(along < -1e-3 for along in pushed(u, -1, None).values())
    assert all(abs(along) < 1e-6 for along in pushed(u, +1, "equality").values())


def test_one_sided_needs_one_direction(learned):
    two = tp.parameter_directions([learned, after()])
    with pytest.raises(DirectionsError, match=r"mode='one_sided'\) needs one direction, found 2"):
        tp.UpdateConstraint(two, mode="one_sided")


# --- the order of a step ---


def test_a_step_that_the_grad_scaler_skips_changes_nothing(u):
    model = lora(seed=2)
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer) as attachment:
        train(model, optimizer, steps=3)
        before = [p.detach().clone() for p in trainable(model)]
        loss = model(**tiny.batch()).loss
        scaler.scale(loss).backward()
        next(p for p in trainable(model) if p.grad is not None).grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert len(constraint_of(attachment).ledger.entries) == 3
    assert all(torch.equal(p, q) for p, q in zip(trainable(model), before, strict=True))


def test_a_fused_step_that_overflowed_is_not_corrected(u):
    """Fused optimisers step under a scaler even on overflow, told by `found_inf`, and change nothing."""
    model = lora(seed=2)
    optimizer = adamw(model)
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer) as attachment:
        train(model, optimizer, steps=2)
        gradients = [p.grad.clone() for p in trainable(model)]
        optimizer.found_inf = torch.ones(())
        constraint = constraint_of(attachment)
        constraint.before_step(optimizer, (optimizer,), {})
        assert not constraint.after_step()
        assert all(torch.equal(p.grad, g) for p, g in zip(trainable(model), gradients, strict=True))
        del optimizer.found_inf


def test_projection_sees_clipped_gradients(u):
    """The share removed is the same with and without clipping, and the step's gradient is shorter than the
    bound.
    """
    model = lora(seed=2)
    optimizer = SGD(trainable(model), lr=1e-3)
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer):
        train(model, optimizer, steps=1, clip=0.01)
    norm = torch.stack([p.grad.norm() for p in trainable(model)]).norm()
    assert 0.005 < norm <= 0.01 + 1e-6


def test_factors_without_gradient_are_left_alone(u):
    """LoRA-FA freezes A: the constraint then acts on B alone, and holds."""
    model = lora(seed=2)
    for module in layers(model).values():
        module.lora_A["default"].weight.requires_grad_(False)
    start, A = delta_weights(model), [m.lora_A["default"].weight.clone() for m in layers(model).values()]
    optimizer = adamw(model)
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer):
        train(model, optimizer, steps=10, seed=9)
    assert all(torch.equal(m.lora_A["default"].weight, a) for m, a in zip(layers(model).values(), A, strict=True))
    assert naive_leak({n: w - start[n] for n, w in delta_weights(model).items()}, dense_direction(u)) < 1e-6


def test_an_optimizer_step_with_a_closure_is_refused(u):
    model = lora(seed=2)
    optimizer = adamw(model)
    with pytest.raises(AttachError, match="computes its gradients inside the step"):  # noqa: SIM117
        with tp.UpdateConstraint(u).attach(model, optimizer=optimizer):
            optimizer.step(lambda: 0.0)


def test_a_second_constraint_on_one_model_is_refused(u):
    """Each would undo the other's correction, and the first one's ledger would not see it."""
    model = lora(seed=2)
    first, second = tp.UpdateConstraint(u), tp.UpdateConstraint(u.random_like(seed=0))
    message = "is under an update constraint already"
    with pytest.raises(AttachError, match=message):
        (first | second).attach(model, optimizer=adamw(model)).__enter__()
    optimizer = adamw(model)
    with first.attach(model, optimizer=optimizer):
        with pytest.raises(AttachError, match=message):
            second.attach(model, optimizer=optimizer).__enter__()
        train(model, optimizer, steps=1)


def test_accelerates_wrapper_is_seen_through(u):
    from accelerate import Accelerator

    model = lora(seed=2)
    optimizer = Accelerator(cpu=True).prepare_optimizer(adamw(model))
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer) as attachment:
        train(model, optimizer, steps=2)
        assert len(constraint_of(attachment).ledger.entries) == 2


def test_it_composes_with_other_guards_and_hooks_are_gone_after(u):
    model = lora(seed=2)
    optimizer = adamw(model)
    projection = tp.GradientProjection(tp.Directions({tp.Site(1): torch.randn(32)}))
    with (projection | tp.UpdateConstraint(u)).attach(model, optimizer=optimizer) as attachment:
        train(model, optimizer, steps=2)
        assert constraint_of(attachment).ledger.entries[-1].leak_cumulative < 1e-6
        assert "guard/update_constraint/leak_cumulative" in attachment.readings()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_that_never_steps_is_a_guard_not_in_force(u):
    model = lora(seed=2)
    guard = tp.UpdateConstraint(u)
    with (
        pytest.raises(GuardNotInForce, match="update constraint"),
        guard.attach(model, optimizer=adamw(model)),
    ):
        model(**tiny.batch()).loss.backward()


# --- resume ---


@pytest.mark.parametrize("space", ["delta_weight", "parameter"])
def test_resuming_in_the_middle_gives_the_same_trajectory(u, space, tmp_path):
    guard = tp.UpdateConstraint(u, space=space)
    whole = after(steps=12, guard=guard)

    half = lora(seed=2)
    optimizer = adamw(half)
    with guard.attach(half, optimizer=optimizer) as attachment:
        train(half, optimizer, steps=6, seed=9)
        attachment.save(tmp_path)
        saved = half.state_dict(), optimizer.state_dict()

    resumed = lora(seed=2)
    resumed.load_state_dict(saved[0])
    optimizer = adamw(resumed)
    optimizer.load_state_dict(saved[1])
    with guard.attach(resumed, optimizer=optimizer) as attachment:
        attachment.load(tmp_path)
        train(resumed, optimizer, steps=6, seed=9, first=6)
        entries = constraint_of(attachment).ledger.entries
    assert equal(whole, resumed)
    assert [entry.step for entry in entries] == [7, 8, 9, 10, 11, 12]
    assert entries[-1].leak_cumulative < 1e-6


def test_state_of_another_constraint_or_none_is_refused(u, learned, tmp_path):
    model = lora(seed=2)
    with tp.UpdateConstraint(u).attach(model, optimizer=adamw(model)) as attachment:
        with pytest.raises(AttachError, match=r"it has no guard_state.safetensors"):
            attachment.load(tmp_path)
        state = attachment.state_dict()
        with pytest.raises(AttachError, match=r"the saved state is of another constraint \(1 entries differ"):
            attachment.load_state_dict({key: value for key, value in state.items() if key != "0/steps"})


# --- what is refused ---


def test_without_optimizer_it_says_how(u):
    with pytest.raises(AttachError, match=r"guard.attach\(model, optimizer=optimizer\); in a Trainer use"):
        tp.UpdateConstraint(u).attach(lora()).__enter__()


def test_deepspeed_is_refused_with_the_reason():
    kind = type("DeepSpeedOptimizerWrapper", (), {"__module__": "accelerate.utils.deepspeed"})
    with pytest.raises(AttachError, match=r"under DeepSpeed, found DeepSpeedOptimizerWrapper: its engine steps inside"):
        steppable(kind())


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(AttachError, match="needs a torch.optim.Optimizer .* found str"):
        steppable("adamw")


def test_directions_that_match_no_trainable_weight_are_named(u):
    model = lora(targets=("q_proj", "v_proj", "up_proj"))
    with pytest.raises(AttachError, match=r"unmatched are model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj;"):
        tp.UpdateConstraint(u).attach(model, optimizer=adamw(model)).__enter__()
    frozen = lora()
    optimizer = adamw(frozen)
    for module in layers(frozen).values():
        module.lora_A["default"].weight.requires_grad_(False)
        module.lora_B["default"].weight.requires_grad_(False)
    with pytest.raises(AttachError, match=r"unmatched are .* and \d more; adapt these modules too|unmatched are"):
        tp.UpdateConstraint(u).attach(frozen, optimizer=optimizer).__enter__()


def test_an_optimizer_of_other_parameters_is_refused(u):
    with pytest.raises(
        AttachError, match="the optimizer does not step the LoRA factors of model.layers.0.mlp.down_proj"
    ):
        tp.UpdateConstraint(u).attach(lora(), optimizer=adamw(lora())).__enter__()


def test_directions_of_another_model_are_refused(u):
    factors = {"model.layers.0.self_attn.q_proj": (torch.randn(8, 2), torch.randn(2, 32))}
    model = lora()
    with pytest.raises(DirectionsMismatch, match="is 8x32, the model's weight 32x32"):
        tp.UpdateConstraint(tp.ParameterDirections.of_factors(factors)).attach(
            model, optimizer=adamw(model)
        ).__enter__()
    named = tp.ParameterDirections(u.factors, u.combination, {"base_model": "org/other-1B"})
    model.get_base_model().config.name_or_path = "org/this-1B"
    with pytest.raises(DirectionsMismatch, match="were made on 'org/other-1B', the model is 'org/this-1B'"):
        tp.UpdateConstraint(named).attach(model, optimizer=adamw(model)).__enter__()


def test_other_ranks_are_refused_in_the_parameter_space(u):
    model = lora(rank=2)
    with pytest.raises(
        DirectionsMismatch, match="found rank 4 at .* where the adapter has 2; use space='delta_weight'"
    ):
        tp.UpdateConstraint(u, space="parameter").attach(model, optimizer=adamw(model)).__enter__()


def test_dora_is_refused(u):
    model = lora(use_dora=True)
    with pytest.raises(
        AttachError, match="the adapter has DoRA at model.layers.0.self_attn.q_proj, and cannot be trained under"
    ):
        tp.UpdateConstraint(u).attach(model, optimizer=adamw(model)).__enter__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "activations"}, "space must be one of delta_weight, parameter, found 'activations'"),
        ({"when": "never"}, "when must be one of update, gradient, found 'never'"),
        ({"mode": "hard"}, "mode must be one of equality, one_sided, soft, found 'hard'"),
        ({"per": "layer"}, "per must be one of weight, model, found 'layer'"),
        ({"mode": "soft", "strength": 1.5}, r"strength must be in \[0, 1\]"),
        ({"strength": 0.5}, "1 unless mode='soft'"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
    ],
)
def test_options_are_checked(u, options, message):
    guard = tp.UpdateConstraint(u)
    for name, value in options.items():
        object.__setattr__(guard, name, value)  # in tests, the annotations would catch some first
    with pytest.raises(UsageError, match=message):
        guard.__post_init__()


def test_over_tolerance_the_run_fails_and_says_why(u):
    """bfloat16 factors cannot hold the correction."""
    model = lora(seed=2).to(torch.bfloat16)
    optimizer = adamw(model)
    guard = tp.UpdateConstraint(u)
    with (
        pytest.raises(LeakExceeded, match="at step 1 is over tolerance 1e-04; the adapter is trained in bfloat16"),
        guard.attach(model, optimizer=optimizer),
    ):
        train(model, optimizer, steps=3)
    with tp.UpdateConstraint(u, tolerance=0.1).attach(model, optimizer=optimizer):
        train(model, optimizer, steps=3)


def test_gradients_that_are_not_finite_fail_the_run(u):
    model = lora(seed=2)
    optimizer = adamw(model)
    with pytest.raises(LeakExceeded, match="leak nan"):  # noqa: SIM117
        with tp.UpdateConstraint(u).attach(model, optimizer=optimizer):
            model(**tiny.batch()).loss.backward()
            for p in trainable(model):
                p.grad.fill_(torch.nan)
            optimizer.step()


def test_nothing_of_the_size_of_a_weight_is_allocated(u):
    """With directions of rank 4 the largest tensor made in a step is a stack of factors, not of weights."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.dim() > 1:
                    largest = max(largest, int(torch.tensor(tensor.shape[-2:]).prod()))
            return out

    model = lora(seed=2)
    optimizer = adamw(model)
    with tp.UpdateConstraint(u).attach(model, optimizer=optimizer) as attachment:
        model(**tiny.batch()).loss.backward()
        constraint = constraint_of(attachment)
        with Watch():
            constraint.before_step(optimizer, (optimizer,), {})
            constraint.after_step()
        optimizer.step()
    sizes = sorted(p.numel() for p in trainable(model))
    assert 0 < largest <= 2 * sizes[-1]  # [A; A − A₀] is the widest
    assert largest < 32 * 64


def test_factors_helper_agrees_with_the_space():
    assert factors(lora()).keys() == delta_weights(lora()).keys()
    assert isinstance(lora(), nn.Module)
