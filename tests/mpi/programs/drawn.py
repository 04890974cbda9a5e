"""The collectives that tests/engine/test_properties.py draws, on processes: drawn.py TRANSPORT.

Every rank draws the same cases. What fails is not made smaller: the others would not follow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import dpcomm

sys.path.extend([str(Path(__file__).parents[2] / folder) for folder in (".", "engine")])
from test_properties import call, cases, check

comm = dpcomm.init(sys.argv[1])


@settings(max_examples=150, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(cases(st.just(comm.size)))
def draw(case):
    check(case, comm.rank, call(comm, case))


draw()
comm.barrier()
if comm.rank == 0:
    print(f"{comm.transport} of {comm.size} ranks holds")
