"""A worker of the pool: `python -m tropism.experiments.executors.worker JOB NAME`."""

import pickle
import sys
from pathlib import Path

from tropism.errors import TropismError


def main() -> int:
    """Do what the job's file says; 2 with one sentence for what its caller can mend."""
    from tropism.experiments.executors.job import Job, do

    job: Job = pickle.loads(Path(sys.argv[1]).read_bytes())
    try:
        do(job, sys.argv[2])
    except TropismError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
