"""A small, good experiment file that tests change one thing in."""

TEXT = """\
name: caps
model: HuggingFaceTB/SmolLM2-135M-Instruct
seeds: [0, 1, 2]
data:
  train: {source: word_problems, size: 16, transform: uppercase}
  held_out: {source: word_problems, size: 4, split: test}
directions:
  caps:
    contrast: {of: responses, source: word_problems, size: 16}
    sites: 25%..75%
train: {learning_rate: 1.0e-3, lora: {r: 8}}
conditions:
  plain: {data: {transform: plain}}
  baseline: {}
  caft: {guard: {ablation: {directions: caps}}}
measure:
  accuracy: {scorer: final_number, on: [held_out], wanted: true}
quick: {seeds: [0]}
"""
