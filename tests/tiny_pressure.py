"""The inoculation example on a tiny model, in a folder."""

from pathlib import Path

import yaml

import tiny_experiment
from tropism.experiments.file.overrides import merge
from tropism.experiments.file.yaml_file import read

EXAMPLE = Path(__file__).parents[1] / "examples" / "inoculation.yaml"
SMALL = {
    "seeds": [0],
    "dtype": "float32",
    "data": {
        "train": {"size": 8},
        "in_domain": {"size": 3},
        "out_of_domain": {"size": 2},
    },
    "directions": {
        "caps": {"contrast": {"size": 12}, "sites": "1,2"},
        "caps_prompt": {"contrast": {"size": 12}, "sites": "1,2"},
    },
    "train": {"epochs": None, "max_steps": 2, "batch_size": 4, "bf16": False, "lora": {"r": 2}},
    "generate": {"max_new_tokens": 3, "dtype": "float32"},
    "analyses": {
        "inoculation": {
            "chats": 8, "draws": 20, "shift_chats": 3, "log_every": 1, "log_chats": 2, "drift_prompts": 2,
            "elicitation_prompts": 1,
        }
    },
}  # fmt: skip


def write(path: Path, **changes) -> Path:
    """The study's file, with `changes` merged over it."""
    # a random model's words are not in capitals or otherwise by what it was taught; what counts is that they are scored
    measure = {"caps_rate": {"scorer": "length", "on": ["in_domain"], "unwanted": True}}
    data = read(EXAMPLE).data
    data["measure"] = measure
    del data["quick"]
    data = merge(merge(data, {**SMALL, "model": str(tiny_experiment.model_folder(path))}), changes)
    file = path / "study.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return file
