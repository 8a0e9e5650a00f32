"""Freed memory is used again, without asking the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, numpy as np
from colocate.base.processes import keep_freed_memory
{call}
faults = []
for turn in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(25_000_000)  # 200 MB, and gone
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_a_large_block_is_cleared_by_the_system_once() -> None:
    again, anew = (
        int(subprocess.run([sys.executable, "-c", SCRIPT.format(call=call)], capture_output=True, check=True).stdout)
        for call in ("keep_freed_memory()", "")
    )
    assert again < 100 < anew
