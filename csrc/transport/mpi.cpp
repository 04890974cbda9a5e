#include "transport/mpi.hpp"

#include <cstdlib>

#include "base/env.hpp"
#include "transport/mpi_calls.hpp"

namespace dpcomm::mpi {

bool running() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

void start() {
  int provided = MPI_THREAD_SINGLE;
  if (running()) {
    check(MPI_Query_thread(&provided), "MPI_Query_thread");
  } else {
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  }
  // The threads of two communicators call MPI at the same time.
  DPCOMM_CHECK(provided == MPI_THREAD_MULTIPLE, EnvironmentError, "this MPI gives thread level ",
               provided, ", dpcomm needs MPI_THREAD_MULTIPLE, ", MPI_THREAD_MULTIPLE,
               "\n  fix: let dpcomm.init() initialise MPI, or mpi4py with its defaults");
}

void finish() {
  if (running()) MPI_Finalize();
}

int rank() {
  int value = 0;
  check(MPI_Comm_rank(MPI_COMM_WORLD, &value), "MPI_Comm_rank");
  return value;
}

int size() {
  int value = 0;
  check(MPI_Comm_size(MPI_COMM_WORLD, &value), "MPI_Comm_size");
  return value;
}

std::vector<int> hosts() {
  MPI_Comm host;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
        "MPI_Comm_split_type");
  int first = rank();  // of this host's ranks: names the host
  check(MPI_Bcast(&first, 1, MPI_INT, 0, host), "MPI_Bcast");
  MPI_Comm_free(&host);
  std::vector<int> all(size());
  check(MPI_Allgather(&first, 1, MPI_INT, all.data(), 1, MPI_INT, MPI_COMM_WORLD), "MPI_Allgather");
  if (env().hosts.empty()) return all;
  DPCOMM_CHECK(env().hosts.size() == all.size(), UsageError, "DPCOMM_HOSTS names ",
               env().hosts.size(), " hosts for ", all.size(),
               " ranks: give one for each rank, or unset it");
  return env().hosts;
}

std::string broadcast(std::string text) {
  int length = static_cast<int>(text.size());
  check(MPI_Bcast(&length, 1, MPI_INT, 0, MPI_COMM_WORLD), "MPI_Bcast");
  text.resize(length);
  check(MPI_Bcast(text.data(), length, MPI_BYTE, 0, MPI_COMM_WORLD), "MPI_Bcast");
  return text;
}

std::string library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  check(MPI_Get_library_version(text, &length), "MPI_Get_library_version");
  return {text, static_cast<std::size_t>(length)};
}

void abort(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace dpcomm::mpi
