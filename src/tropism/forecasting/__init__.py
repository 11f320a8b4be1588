"""What will this fine-tune teach besides what you want? Traits, measures with their nulls, verdicts; and a training without it.

```text
trait        a trait: contrast pairs and a scorer; the library lies in traits/
sample       rows of the data, and the model's own answers to their prompts
projection   tier 1: how far the data lies along a trait
gradient     tier 2: where each row's gradient points
dry_run      tier 3: a short training with your recipe
evidence     the measures, each beside its null
verdict      expected, possible, none or cannot, by rule
found        options, and what is found
calibration  a probability from the measures
forecast     the tiers in order, as one call
outputs      JSON, a table of rows, the data without the rows to blame
page         one HTML file
```
"""
