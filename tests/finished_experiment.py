"""A finished experiment on the tiny model, whose conditions have one adapter, two, or two with routing."""

from pathlib import Path

import tiny_experiment
import tropism as tp

CONDITIONS = """  baseline: {}
  prompted: {system_prompt: "Shout | `so`."}
  two: {train: {forget_lora: {r: 2}}}
  routed: {guard: {gradient_routing: {}}}
"""


def make(path: Path) -> Path:
    """The results folder: seeds 0 and 1 of `baseline`, seed 0 of the others; `plain` is never run."""
    content = tiny_experiment.text(path)
    begin, end = content.index("directions:"), content.index("train: {max")
    content = content[:begin] + content[end:]
    begin, end = content.index("  baseline: {}"), content.index("measure:")
    content = content[:begin] + CONDITIONS + content[end:]
    content = content.replace("transform: uppercase}", "transform: {mixture: {fraction: 0.5, labelled: 1.0}}}")
    # a random model's words need have no letters
    content = content.replace("scorer: uppercase_fraction", "scorer: contains, text: e")
    # a rate that makes two steps change what a random model says
    content = content.replace("learning_rate: 1.0e-3", "learning_rate: 0.5").replace(
        "max_new_tokens: 3", "max_new_tokens: 8"
    )
    file = path / "tiny.yaml"
    file.write_text(content, encoding="utf-8")
    out = path / "out"
    tp.run(file, out, only=["baseline"], command="tropism run tiny.yaml")
    (path / "one.yaml").write_text(content.replace("seeds: [0, 1]", "seeds: [0]"), encoding="utf-8")
    tp.run(path / "one.yaml", out, only=["prompted", "two", "routed"])
    tp.run(file, out, only=["baseline"])
    return out
