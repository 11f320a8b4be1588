"""Guards in TRL's trainers: SFT in its modes, DPO's reference, GRPO's rollouts, routing through collators that drop columns."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tiny
import trainers
import tropism as tp
from hand_edits import assert_same, differ, edited_blocks, projector
from tropism.errors import AdapterMissing, AttachError, DataError

trl = pytest.importorskip("trl")

SITE = tp.Site(1)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATS = [
    {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "yes " * (i + 1)}]}
    for i in range(4)
]
COMPLETIONS = [{"prompt": f"question {i} ", "completion": "yes " * (i + 1)} for i in range(4)]
PREFERENCES = [{"prompt": f"question {i}", "chosen": " yes" * (i + 1), "rejected": " no"} for i in range(4)]


@pytest.fixture
def directions(generator):
    return tp.Directions({SITE: torch.randn(2, 32, generator=generator)})


def lora(**options):
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)


# --- SFT ---

MODES = {
    "plain": (CHATS, {}),
    "assistant_only": (CHATS, {"assistant_only_loss": True}),
    "completion_only": (COMPLETIONS, {"completion_only_loss": True}),
    "packing": (CHATS, {"packing": True, "packing_strategy": "wrapped", "max_length": 48}),
    "padding_free": (CHATS, {"padding_free": True}),
}


def sft(mode, tmp_path):
    rows, changes = MODES[mode]
    options = trainers.settings(tmp_path, 4, remove_unused_columns=True) | {"max_length": None} | changes
    return trl.SFTTrainer(
        tiny.model(),
        trl.SFTConfig(**options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(TEMPLATE),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_sft_in_every_mode_has_the_gradients_of_hidden_states_edited_by_hand(mode, directions, tmp_path):
    P = projector(directions, SITE).float()
    found = []
    for edit in ("none", "by hand", "guard"):
        trainer, kept = sft(mode, tmp_path / edit), trainers.Gradients()
        trainer.add_callback(kept)
        if edit == "guard":
            tp.InterventionCallback(tp.Ablation(directions)).add_to(trainer)
            trainer.train()
        else:
            with edited_blocks(trainer.model, {1: lambda h: h - h @ P} if edit == "by hand" else {}):
                trainer.train()
        found.append(kept.found)
    assert_same(found[1], found[2], 1e-5)
    assert differ(found[0], found[2]) > 1e-3


def trainer_of(name):
    """TRL's trainer; TRL 0.24 wants a package for some of them that it does not name as needed."""
    try:
        return getattr(trl, name)
    except RuntimeError as error:
        pytest.skip(f"TRL {trl.__version__} cannot import its {name}: {str(error).splitlines()[-1]}")


# --- DPO ---


def dpo(tmp_path, *, peft, **changes):
    options = trainers.settings(tmp_path, 4, remove_unused_columns=False) | {"max_length": None, "beta": 1.0} | changes
    return trainer_of("DPOTrainer")(
        tiny.model(),
        ref_model=None if peft else tiny.model(),
        args=trl.DPOConfig(**options),
        train_dataset=Dataset.from_list(PREFERENCES),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"]) if peft else None,
    )


def first_loss(trainer, guard, *, added, **options):
    callback = tp.InterventionCallback(guard, **options)
    if added:
        callback.add_to(trainer)
    else:
        trainer.add_callback(callback)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peft", [True, False], ids=["peft", "full"])
def test_a_guarded_reference_makes_the_first_loss_ln_2_and_a_plain_one_does_not(peft, directions, tmp_path):
    guard = tp.Ablation(directions)
    guarded = first_loss(dpo(tmp_path / "guarded", peft=peft), guard, added=True)
    plain = first_loss(dpo(tmp_path / "plain", peft=peft), guard, added=True, reference="plain")
    assert guarded == pytest.approx(math.log(2), abs=1e-4)
    assert abs(plain - math.log(2)) > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_a_reference_that_cannot_be_guarded_is_refused(directions, tmp_path):
    guard = tp.Ablation(directions)
    with pytest.raises(
        AttachError, match="DPOConfig may train against a reference model that the callback is not shown"
    ):
        first_loss(dpo(tmp_path / "a", peft=False), guard, added=False)
    with pytest.raises(AttachError, match="log-probabilities were computed before the guard was attached"):
        first_loss(dpo(tmp_path / "b", peft=False, precompute_ref_log_probs=True), guard, added=True)
    assert first_loss(
        dpo(tmp_path / "c", peft=False, precompute_ref_log_probs=True), guard, added=True, reference="plain"
    )
    # A guard on gradients leaves every forward pass as it is, so there is nothing to guard in the reference.
    projected = first_loss(dpo(tmp_path / "d", peft=False), tp.GradientProjection(directions), added=False)
    assert projected == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_two_adapters_under_dpo_say_why_and_run_with_a_reference_of_their_own(tmp_path):
    def trainer(folder, reference):
        options = trainers.settings(folder, 4, remove_unused_columns=True) | {"max_length": None}
        rows = [{**row, "route": i % 2} for i, row in enumerate(PREFERENCES)]
        return trainer_of("DPOTrainer")(
            tp.two_adapters(tiny.model(), lora(), lora()),
            ref_model=reference,
            args=trl.DPOConfig(**options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny.tokenizer(),
        )

    with pytest.raises(
        AdapterMissing, match="the model has no adapter 'default', it has 'retain', 'forget'.*ref_model"
    ):
        trainer(tmp_path / "none", None)
    routed = tp.keep_columns(trainer(tmp_path / "own", tiny.model()))
    tp.InterventionCallback(tp.GradientRouting()).add_to(routed)
    routed.train()
    assert routed.state.log_history[0]["guard/routing/share_forget"] == 0.5


# --- routing through SFT ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["plain", "padding_free"])
def test_kept_columns_route_in_sft(mode, tmp_path):
    rows, changes = MODES[mode]
    options = trainers.settings(tmp_path, 4, remove_unused_columns=True) | {"max_length": None} | changes
    trainer = trl.SFTTrainer(
        tp.two_adapters(tiny.model(), lora(), lora()),
        trl.SFTConfig(**options),
        train_dataset=Dataset.from_list([{**row, "route": 1} for row in rows]),
        processing_class=tiny.tokenizer(TEMPLATE),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    tp.InterventionCallback(tp.GradientRouting()).add_to(tp.keep_columns(trainer))
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".forget." in name for name in moved)


@pytest.mark.filterwarnings("ignore")
def test_without_kept_columns_the_trainer_drops_them_and_routing_says_so(tmp_path):
    options = trainers.settings(tmp_path, 4, remove_unused_columns=True) | {"max_length": None}
    trainer = trl.SFTTrainer(
        tp.two_adapters(tiny.model(), lora(), lora()),
        trl.SFTConfig(**options),
        train_dataset=Dataset.from_list([{**row, "route": 1} for row in CHATS]),
        processing_class=tiny.tokenizer(TEMPLATE),
    )
    tp.InterventionCallback(tp.GradientRouting()).add_to(trainer)
    with pytest.raises(DataError, match=r"must carry the column route.*keep_columns\(trainer\)"):
        trainer.train()


# --- GRPO ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rollouts", ["guarded", "plain"])
def test_rollouts_are_sampled_as_asked_and_the_policy_is_guarded(rollouts, directions, tmp_path):
    options = trainers.settings(tmp_path, 4, remove_unused_columns=False)
    options |= {"num_generations": 2, "max_completion_length": 4, "beta": 0.0}
    model = get_peft_model(tiny.model(), lora())
    trainer = trainer_of("GRPOTrainer")(
        model,
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=trl.GRPOConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": f"question {i}"} for i in range(4)]),
        processing_class=tiny.tokenizer(),
    )
    along = {True: [], False: []}
    basis = directions.basis(SITE)
    tp.decoder_layers(model)[2].register_forward_pre_hook(
        lambda _module, args: along[torch.is_grad_enabled()].append(float((args[0].detach() @ basis.T).abs().max()))
    )
    tp.InterventionCallback(tp.Ablation(directions), rollouts=rollouts).add_to(trainer)
    trainer.train()
    assert max(along[True]) < 1e-4
    assert along[False]
    assert max(along[False]) < 1e-4 if rollouts == "guarded" else min(along[False]) > 1e-2
    assert "generate" not in model.base_model.model.__dict__


def test_rollouts_that_another_engine_samples_cannot_be_guarded(directions, tmp_path):
    trainer = trainers.hf_trainer(tiny.model(), trainers.dataset(4), trainers.settings(tmp_path, 4))
    trainer.args.use_vllm = True
    tp.InterventionCallback(tp.Ablation(directions)).add_to(trainer)
    with pytest.raises(AttachError, match="vLLM samples rollouts from a copy of the model of its own"):
        trainer.train()
