"""What a results folder says, read with no model and no torch.

```text
folder        read and check an experiment's folder      measurement  one row of results.csv, with its types
summary       measurements → values with intervals       roles        which conditions are guards, which controls
rules         from intervals to verdicts                 verdict      the answer in a sentence, by rule
section       what an analysis hands to the report       derived      sections that follow from the table alone
caveats       what to know before believing the table    text         numbers and names as a reader wants them
```
"""
