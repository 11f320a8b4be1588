"""Who does the runs of a prepared experiment.

`local` is this process. `pool`, `ray` and `slurm` start workers, each of which does what `local` does: it takes the runs that
nobody else has claimed in the results folder, which all of them share. `spread` starts workers and passes on what they say.
"""
