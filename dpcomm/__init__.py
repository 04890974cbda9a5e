"""dpcomm: a communication engine for differentially private training on many processors.

Importing this package starts neither MPI, CUDA nor a JVM.
"""

__version__ = "0.1.0"
