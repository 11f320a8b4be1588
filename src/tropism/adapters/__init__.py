"""PEFT adapters as Tropism reads them: which kinds there are, and what can be done with each exactly.

`kinds.py` the table of kinds and operations · `parts.py` what an adapter is made of · `folder.py` a saved
adapter, read as data · `load.py` put it on a model, strictly · `merge.py` merge it without touching a tied weight ·
`factors.py` the LoRA factors of a weight · `read.py` all factors of an adapter · `targets.py` which modules to adapt.
"""
