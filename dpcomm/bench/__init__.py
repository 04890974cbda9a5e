"""Microbenchmarks of the collectives: `mpirun -np 8 python -m dpcomm.bench all_reduce`."""
