"""One of several processes on one results folder, to be forked (`forked.Forked`).

It begins when the file `go` is there. It writes a line to `log` for what it starts and ends. With
`hang` it stops in the first step of its first training, so that it can be killed there.
"""

import time
from pathlib import Path

import tropism as tp
from tropism.experiments.progress import Progress


class Logged(Progress):
    def __init__(self, log: Path, hang: bool):
        self.log, self.hang = log, hang

    def _write(self, *words):
        with self.log.open("a") as lines:
            lines.write(" ".join(map(str, words)) + "\n")

    def say(self, line):
        self._write("say", line)

    def start(self, name, index, of):
        self._write("start", name)

    def finish(self, name, seconds, outcome):
        self._write(outcome, name)

    def phase(self, what, done, of, values=None):
        if self.hang and what == "training":
            self._write("hang")
            time.sleep(600)


def work(file: Path, out: Path, log: Path, go: Path, hang: bool) -> None:
    log.write_text("ready\n")
    while not go.exists():
        time.sleep(0.02)
    tp.run(file, out, progress=Logged(log, hang))
