"""Train it so that it does not learn what the forecast found: candidates, a pilot, a race, a confirmation, a card.

```text
options    what is asked for
split      rows to train on, to select on, to judge on
candidates the guards that could help, each as a condition of an experiment
file       the experiment file: ordinary, readable, yours to edit
pilot      does the baseline learn the trait and the skill at all?
race       successive halving on the development prompts
choice     what the confirmation says: does the best guard help?
card       card.md and protect.json
protect    the steps in order, each resumable
```
"""
