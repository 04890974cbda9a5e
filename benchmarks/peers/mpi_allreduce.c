// MPI_Allreduce as benchmarks/collectives.py times ours: mpi_allreduce BUDGET BYTES…. Float32 sum in
// place on rank r, pinned to core r modulo cores, the buffer written anew before each call. Prints,
// on rank 0, BYTES and the midmean, over the calls that fit the budget, of the slowest rank's
// seconds.
#define _GNU_SOURCE
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { kProbes = 3, kFewest = 5, kMost = 2000 };

static int ascending(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

// The mean of the middle half: a median that is finer than the clock, which may tick in tens of
// nanoseconds.
static double midmean(double* values, int count) {
  qsort(values, count, sizeof(double), ascending);
  const int quarter = count / 4;
  double sum = 0;
  for (int i = quarter; i < count - quarter; ++i) sum += values[i];
  return sum / (count - 2 * quarter);
}

static double time_call(float* data, size_t bytes, int value) {
  memset(data, value, bytes);
  MPI_Barrier(MPI_COMM_WORLD);
  const double begin = MPI_Wtime();
  MPI_Allreduce(MPI_IN_PLACE, data, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  return MPI_Wtime() - begin;
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  cpu_set_t core;
  CPU_ZERO(&core);
  CPU_SET(rank % sysconf(_SC_NPROCESSORS_ONLN), &core);
  sched_setaffinity(0, sizeof(core), &core);

  const double budget = atof(argv[1]);
  for (int i = 2; i < argc; ++i) {
    const size_t bytes = strtoull(argv[i], NULL, 10);
    float* data = malloc(bytes);
    double slowest = 1e9;
    for (int probe = 0; probe < kProbes; ++probe) {
      const double begin = MPI_Wtime();
      time_call(data, bytes, probe);
      const double seconds = MPI_Wtime() - begin;
      if (seconds < slowest) slowest = seconds;
    }
    MPI_Allreduce(MPI_IN_PLACE, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    int calls = kMost;
    if (slowest * kMost > budget) calls = (int)(budget / slowest);
    if (calls < kFewest) calls = kFewest;

    double* seconds = malloc(calls * sizeof(double));
    for (int call = 0; call < calls; ++call) seconds[call] = time_call(data, bytes, call & 1);
    MPI_Allreduce(MPI_IN_PLACE, seconds, calls, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    if (rank == 0) {
      printf("%zu %.10f\n", bytes, midmean(seconds, calls));
      fflush(stdout);
    }
    free(seconds);
    free(data);
  }
  return MPI_Finalize();
}
