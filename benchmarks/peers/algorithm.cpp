// One of our algorithms over MPI's messages, and MPI_Allreduce, in turns in one job: float32 sums
// in place, the buffer written before each call. For benchmarks/algorithms.py.
//
//   algorithm NAME BYTES CALLS [BYTES CALLS …]
//
// Rank 0 prints BYTES and the medians of the slowest rank's seconds, ours and MPI's.

#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/communicator.hpp"
#include "transport/mpi.hpp"

namespace {

template <class Call>
double timed(std::vector<float>& data, Call call) {
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  std::fill(data.begin(), data.end(), static_cast<float>(rank + 1));
  MPI_Barrier(MPI_COMM_WORLD);
  const double begin = MPI_Wtime();
  call();
  const double seconds = MPI_Wtime() - begin;
  const auto total = static_cast<float>(size * (size + 1) / 2);
  if (!std::all_of(data.begin(), data.end(), [&](float sum) { return sum == total; })) {
    std::fprintf(stderr, "rank %d: a wrong sum\n", rank);
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  return seconds;
}

double median_of_slowest(std::vector<double> seconds) {
  MPI_Allreduce(MPI_IN_PLACE, seconds.data(), static_cast<int>(seconds.size()), MPI_DOUBLE, MPI_MAX,
                MPI_COMM_WORLD);
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  using namespace dpcomm;
  mpi::start();
  {
    Communicator comm(mpi::transport(60));
    for (int i = 2; i + 1 < argc; i += 2) {
      std::vector<float> data(std::strtoull(argv[i], nullptr, 10) / sizeof(float));
      Arguments arguments{.data = data.data(), .out = data.data(), .count = data.size()};
      arguments.algorithm = algorithm_of(argv[1]);
      std::vector<double> ours, theirs;
      for (int call = 0; call <= std::atoi(argv[i + 1]); ++call) {
        ours.push_back(timed(data, [&] { comm.all_reduce(arguments); }));
        theirs.push_back(timed(data, [&] {
          MPI_Allreduce(MPI_IN_PLACE, data.data(), static_cast<int>(data.size()), MPI_FLOAT,
                        MPI_SUM, MPI_COMM_WORLD);
        }));
      }
      ours.erase(ours.begin());  // the first warms up
      theirs.erase(theirs.begin());
      const double own = median_of_slowest(ours), other = median_of_slowest(theirs);
      if (comm.rank() == 0) std::printf("%s %.9f %.9f\n", argv[i], own, other);
    }
  }
  mpi::finish();
}
