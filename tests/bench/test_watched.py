"""The memory of a command and of what it starts."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from bench.watched import peak_of, watch

HOLDS = "import time; held = b'1' * 150_000_000; del held; time.sleep(0.8)"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS!r}], check=True)"


def test_every_process_has_its_own_peak(tmp_path: Path):
    found = watch(["-c", STARTS], tmp_path, threads=1)
    assert len(found.peak_bytes) == 2 and found.seconds > 0.8
    largest, smallest = found.peak_bytes
    assert 1.5e8 < largest < 2.5e8 and smallest < 5e7


def test_a_command_that_fails_is_told_and_its_words_are_kept(tmp_path: Path):
    with pytest.raises(subprocess.CalledProcessError):
        watch(["-c", "raise SystemExit('no such thing')"], tmp_path, threads=1)
    assert "no such thing" in (tmp_path / "watched.log").read_text()


def test_a_short_command_is_not_waited_for(tmp_path: Path):
    started = time.perf_counter()
    assert watch(["-c", "pass"], tmp_path, threads=1).seconds <= time.perf_counter() - started


def test_a_process_that_is_gone_has_no_peak():
    done = subprocess.Popen(["true"])
    done.wait()
    assert peak_of(done.pid) == 0 and peak_of(os.getpid()) > 1e7
