"""`tropism run` that is killed in a training step: python killed_worker.py FILE OUT STEP; with STEP 0 it is not."""

import os
import signal
import sys
from pathlib import Path

import tropism as tp
from tropism.experiments.progress import Progress

file, out, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


class Killed(Progress):
    def say(self, line):
        print(line, flush=True)

    def phase(self, what, done, of, values=None):
        if what == "training" and done == step:
            os.kill(os.getpid(), signal.SIGKILL)


tp.run(file, out, progress=Killed())
