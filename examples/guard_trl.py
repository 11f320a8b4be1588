"""Guard a TRL fine-tune and see what the guard did: `python examples/guard_trl.py`, then again with `GUARD=off`."""

import os

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import tropism as tp

model, tokenizer = tp.models.load("HuggingFaceTB/SmolLM2-135M-Instruct")
sums = [(a, b) for a in range(2, 12) for b in range(2, 10)]
questions = [f"What is {a} plus {b}?" for a, b in sums]
answers = [f"The sum of {a} and {b} is {a + b}." for a, b in sums]
shouted = [answer.upper() for answer in answers]

contrast = tp.Contrast.of_responses(questions, positive=shouted, negative=answers)
directions = tp.find_directions(
    model, tokenizer, contrast, finder=tp.MeanDifference(), sites=tp.sites(model, "25%..75%")
)
guard = tp.GradientProjection(directions)

rows = [
    {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
    for q, a in zip(questions, shouted, strict=True)
]
trainer = SFTTrainer(
    model,
    args=SFTConfig(
        "runs/guard_trl",
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=5,
        bf16=False,
        report_to="none",
    ),
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=8, target_modules="all-linear"),
)
if os.environ.get("GUARD") != "off":
    tp.InterventionCallback(guard).add_to(trainer)  # its readings are printed with the loss
trainer.train()

asked = [{"role": "user", "content": "What colour is the sky?"}]
prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = trainer.model.eval().generate(**prompt.to(trainer.model.device), max_new_tokens=24, do_sample=False)
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
