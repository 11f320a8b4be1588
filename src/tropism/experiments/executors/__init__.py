"""Who does the runs of a prepared experiment: `local.py`, this process, beside any others on the same folder."""
