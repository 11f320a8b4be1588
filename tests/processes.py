"""Worker processes of the distributed tests: started together, waited for together, and never left behind."""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed

import forked

PATIENCE_S = 500
"""Two imports of torch and transformers on a busy machine; a worker that takes longer hangs."""


def run_workers(work, *ranks):
    """Run a script, or a function, with each rank's arguments at once; every one must end with code 0.

    A worker that does not end is aborted, which makes faulthandler print where each of its threads stands.
    """
    logs = [Path(tempfile.gettempdir()) / f"worker-{os.getpid()}-{rank}.log" for rank in range(len(ranks))]
    workers = []
    for log, arguments in zip(logs, ranks, strict=True):
        start = forked.script if isinstance(work, Path) else forked.Forked
        workers.append(start(work, *arguments, log=log))
    ends = time.monotonic() + PATIENCE_S
    try:
        # A rank that failed leaves the others waiting for it: then there is nothing more to wait for.
        while any(w.poll() is None for w in workers) and not any(w.poll() for w in workers) and time.monotonic() < ends:
            time.sleep(0.2)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGABRT)
            worker.wait(timeout=30)
    said = "\n".join(f"rank {rank}:\n{log.read_text(errors='replace')}" for rank, log in enumerate(logs))
    for log in logs:
        log.unlink()
    assert [worker.returncode for worker in workers] == [0] * len(ranks), said


def leave() -> None:
    """End a worker once all have come here, with code 0 and without torch's destructors.

    A process group that is destroyed under the GIL joins Gloo's thread, and that thread may be waiting for the GIL to drop
    the barrier's tensor: then neither ends (seen with torch 2.13, rarely).
    """
    torch.distributed.barrier()
    time.sleep(0.5)  # a peer may still be reading the barrier's last message
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
