"""What is said of the machine's quiet."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsify.bench.noise import Noise, Observer


def test_a_quiet_machine_has_no_complaints():
    assert Noise([1.0, 1.09], load=0.3, others=0.02, stolen=0.0).complaints() == []
    assert Noise().complaints() == [] and Noise().drift == 1.0


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="only Linux tells what cores do")
def test_other_programs_are_noticed_and_our_own_do_not_count():
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    observer, cores = Observer(2), len(os.sched_getaffinity(0))
    start = time.perf_counter()
    observer.start()
    subprocess.run([sys.executable, "-c", busy], check=True)
    observer.tick()
    observer.stop(ours=0.0)
    least = 0.3 / (cores * (time.perf_counter() - start))  # the kernel counts in hundredths of a second
    assert observer.noise().others >= least and 0 <= observer.noise().stolen <= 1
    assert len(observer.noise().reference_ms) == 1 and observer.noise().drift == 1.0
    observer.start()
    observer.stop(ours=1000.0)
    assert observer.noise().others == 0
