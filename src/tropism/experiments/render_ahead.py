"""Several large training sets rendered at the same time, where there is a core for each.

A worker is `python -m tropism.experiments.render_ahead FILE INDEX COUNT`: it renders every COUNT-th set of the file into the
folder in which sets are kept. What it does not get done, for whatever reason, is rendered by who asked, who then also says
what is wrong: nothing but time depends on the workers.
"""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tropism.data import sources
from tropism.errors import TropismError
from tropism.experiments.file.spec import DataSpec
from tropism.experiments.rendered import RenderedSets, Wanted

log = logging.getLogger(__name__)

WORTH_BYTES = 4 * 2**20
"""From files of this size on, rendering a set takes longer than starting a process (some four seconds)."""


def render_ahead(rendered: RenderedSets, wanted: Sequence[Wanted]) -> None:
    """Render those of the sets that are not kept and are large, each in one of as many processes as there are cores.

    Raises nothing of its own: a set with an error is left for who asks for it.
    """
    large = [one for one in wanted if _bytes(one.spec) >= WORTH_BYTES]
    missing = rendered.missing(large) if len(large) > 1 and cores() > 1 else []
    count = min(len(missing), cores())
    if count < 2:
        return
    with tempfile.TemporaryDirectory(prefix="tropism-") as folder:
        file = Path(folder) / "wanted.pickle"
        file.write_bytes(pickle.dumps((rendered, missing)))
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tropism.experiments.render_ahead", str(file), str(index), str(count)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for index in range(1, count)
        ]
        try:
            _make(rendered, missing[::count])
            for worker in workers:
                _, said = worker.communicate()
                if worker.returncode:
                    last = said.decode(errors="replace").strip().splitlines()[-1:]
                    log.info("a process that rendered chats ended with %s: %s", worker.returncode, *last)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _bytes(spec: DataSpec) -> int:
    """The bytes of the files here that a set is read from, without what is mixed in."""
    if spec.size is not None:
        return 0  # a sample
    found = 0
    for name in spec.names():
        with suppress(TropismError, OSError):  # said by who reads it
            found += sum(file.stat().st_size for file in sources.local_files(name))
    return found


def _make(rendered: RenderedSets, wanted: Sequence[Wanted]) -> None:
    for one in wanted:
        with suppress(TropismError):  # comes again, and is raised, where the set is asked for
            rendered.make(one)


def main() -> None:
    """Render what a file says."""
    rendered, wanted = pickle.loads(Path(sys.argv[1]).read_bytes())
    index, count = map(int, sys.argv[2:])
    _make(rendered, wanted[index::count])


if __name__ == "__main__":
    main()
