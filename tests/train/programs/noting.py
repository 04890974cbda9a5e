"""Trains, and notes each update, once it is made, in the file $UPDATES: a byte that a kill leaves.

The pid of each rank is a file beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

from dpcomm import launch
from dpcomm.train.metrics import save_summary
from dpcomm.train.options import parse
from dpcomm.train.trainer import Trainer

updates = Path(os.environ["UPDATES"])
options = parse()
comm = launch.init()
updates.with_name(f"{os.getpid()}.pid").touch()
comm.barrier()
noted = os.open(updates, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
take_step = Trainer._take_step


def note(self, step, toll):
    take_step(self, step, toll)
    if comm.rank == 0:
        os.write(noted, b".")


Trainer._take_step = note
summary = Trainer(comm, options).train()
if comm.rank == 0:
    save_summary(summary, options.summary)
