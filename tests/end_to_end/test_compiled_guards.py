"""Guards and `torch.compile`: attached first they are compiled in; attached afterwards, they say so."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_compiled():
    worker = Path(__file__).with_name("compiled_guards_worker.py")
    done = subprocess.run([sys.executable, "-W", "ignore", str(worker)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
