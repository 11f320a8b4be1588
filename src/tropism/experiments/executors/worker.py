"""A worker of the pool: `python -m tropism.experiments.executors.worker JOB NAME`, or a fork of the `source`."""

import errno
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tropism.atomic import says_disk_is_full
from tropism.errors import TropismError

if TYPE_CHECKING:
    from tropism.experiments.executors.job import Job

DISK_FULL = errno.ENOSPC
"""What a worker returns that found the disk full."""


def read(file: Path) -> "Job":
    """Return the job that a file holds."""
    import tropism.experiments.executors.job  # noqa: F401 - imported before the job is there

    job: Job = pickle.loads(file.read_bytes())
    return job


def warm(job: "Job") -> None:
    """Load the start model, which forks of this process then share; what is wrong with it each run says itself."""
    try:
        job.prepared.held.start()
    except TropismError:
        return


def work(job: "Job", name: str) -> int:
    """Do a job; 2 with one sentence for what its caller can mend."""
    from tropism.experiments.executors.job import do

    try:
        do(job, name)
    except TropismError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        if not says_disk_is_full(error):
            raise
        return DISK_FULL  # there may be no room to write why
    return 0


def main() -> int:
    """Do what the job's file says."""
    return work(read(Path(sys.argv[1])), sys.argv[2])


if __name__ == "__main__":
    raise SystemExit(main())
