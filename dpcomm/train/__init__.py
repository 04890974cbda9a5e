"""`mpirun -np 8 python -m dpcomm.train`: private training of a classifier on prepared records."""
