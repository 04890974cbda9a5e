// MPI_Allreduce as benchmarks/collectives.py times ours: float32 sum in place, the buffer written
// before each call. Prints, on rank 0, BYTES and the median of the slowest rank's seconds.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int ascending(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (int i = 1; i + 1 < argc; i += 2) {
    const size_t bytes = strtoull(argv[i], NULL, 10);
    const int calls = atoi(argv[i + 1]);
    float* data = malloc(bytes);
    double* seconds = malloc(calls * sizeof(double));
    for (int call = 0; call < calls; ++call) {
      memset(data, call & 1, bytes);
      MPI_Barrier(MPI_COMM_WORLD);
      const double begin = MPI_Wtime();
      MPI_Allreduce(MPI_IN_PLACE, data, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
      seconds[call] = MPI_Wtime() - begin;
    }
    MPI_Allreduce(MPI_IN_PLACE, seconds, calls, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    qsort(seconds, calls, sizeof(double), ascending);
    if (rank == 0) printf("%zu %.9f\n", bytes, seconds[calls / 2]);
    free(seconds);
    free(data);
  }
  return MPI_Finalize();
}
