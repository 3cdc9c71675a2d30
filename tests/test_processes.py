"""Processes that end with whoever started them."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from cloudem.processes import ending_with_this

STARTER = """\
import subprocess, sys, time
from cloudem.processes import ending_with_this
child = subprocess.Popen(ending_with_this(["sleep", "60"]), start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_it_becomes_the_command_and_is_gone_with_its_starter() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(starter.stdout.readline()))
    until = time.monotonic() + 10
    while child.name() != "sleep" and time.monotonic() < until:
        time.sleep(0.01)
    assert child.cmdline() == ["sleep", "60"]
    starter.kill()
    starter.communicate()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


def test_a_program_that_is_not_there_is_an_error_of_its_starter() -> None:
    with pytest.raises(FileNotFoundError, match="/no/such"):
        ending_with_this(["/no/such"])
