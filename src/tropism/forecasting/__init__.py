"""What will this fine-tune teach besides what you want? Traits, measures with their nulls, verdicts; and a training without it.

```text
trait        a trait: contrast pairs and a scorer; the library lies in traits/
sample       rows of the data, and the model's own answers to their prompts
sides        what a trait looks like on a model, found once and kept on disk
reading      mean activations over responses
scoring      what a trait's scorer says of rows
projection   tier 1: how much of each trait lies in each row
gradient     tier 2: where each row's gradient points
dry_run      tier 3: a short training with your recipe
evidence     the measures, each beside its null
verdict      expected, possible, none or cannot, by rule
found        options, and what is found
calibration  a probability from the measures
forecast     the tiers in order, as one call
outputs      JSON, a table of rows, the data without the rows to blame
page         one HTML file
protect      train it without the traits: candidates, race, confirmation, card
```
"""
