"""Starts ranks as torchrun does, in the caller's session: ranks.py -np N PROGRAM…

Linux shares cores out between sessions first (autogroup). MPICH's and Intel's mpirun give each rank
a session of its own, and a rank that yields its core then hands it to a peer only once both have
had the same time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main(ranks: int, *program: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    job = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    job["TORCHELASTIC_RUN_ID"] = str(os.getpid())  # which job of this host
    started = []
    try:
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(subprocess.Popen(program, env={**os.environ, **job, **own}))
        return max(process.wait() != 0 for process in started)
    finally:
        for process in started:
            process.terminate()


sys.exit(main(int(sys.argv[2]), *sys.argv[3:]))
