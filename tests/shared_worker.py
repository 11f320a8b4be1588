"""One of several processes on one results folder: python shared_worker.py FILE OUT LOG GO [HANG].

Begins when the file GO is there. Writes a line to LOG for what it starts and ends. With HANG it stops in the first step of
its first training, so that it can be killed there.
"""

import sys
import time
from pathlib import Path

import tropism as tp
from tropism.experiments.progress import Progress

file, out, log, go, *hang = sys.argv[1:]
log, go = Path(log), Path(go)


class Logged(Progress):
    def _write(self, *words):
        with log.open("a") as lines:
            lines.write(" ".join(map(str, words)) + "\n")

    def say(self, line):
        self._write("say", line)

    def start(self, name, index, of):
        self._write("start", name)

    def finish(self, name, seconds, outcome):
        self._write(outcome, name)

    def phase(self, what, done, of, values=None):
        if hang and what == "training":
            self._write("hang")
            time.sleep(600)


# Imported before the start, so that all begin together.
import tropism.experiments.run  # noqa: E402

log.write_text("ready\n")
while not go.exists():
    time.sleep(0.02)
tp.run(file, out, progress=Logged())
