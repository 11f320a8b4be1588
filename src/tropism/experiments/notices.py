"""What is dropped, shortened or skipped on the way from files to rows, collected from the loggers that say it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGERS = ("tropism.data", "tropism.experiments")


class _Collector(logging.Handler):
    """Keeps each warning once, and passes it on as it comes."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self.lines:
            self.lines.append(line)
            self._say(line)


@contextmanager
def noticed(say: Callable[[str], None]) -> Iterator[list[str]]:
    """Collect, inside, every warning about the data; each is said once, as it comes."""
    collector = _Collector(say)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(collector)
    try:
        yield collector.lines
    finally:
        for logger in loggers:
            logger.removeHandler(collector)
