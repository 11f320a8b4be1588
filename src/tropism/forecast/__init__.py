"""What will this fine-tune teach besides what you want? Traits, measures with their nulls, verdicts; and a training without it.

```text
trait       a trait: contrast pairs and a scorer; the library in traits/     verdict      expected, possible, none, cannot: by rule
sample      rows of the data, and the model's own answers to their prompts   forecasting  the tiers in order, as one call
projection  tier 1: how far the data lies along a trait                      outputs      JSON, rows.parquet, clean data
gradient    tier 2: where each row's gradient points                         page         one HTML file
dry_run     tier 3: a short training with your recipe                        protect/      from a forecast to a guarded adapter
```
"""
