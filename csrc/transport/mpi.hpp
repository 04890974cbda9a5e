#pragma once

#include <memory>
#include <string>
#include <vector>

#include "transport/transport.hpp"

// MPI point-to-point, for ranks on several hosts. Only the module bindings/mpi.cpp is built with
// this: nothing else of dpcomm knows of MPI.

namespace dpcomm::mpi {

// Initialises MPI if nobody has (then finish() must be called); with MPI_THREAD_MULTIPLE.
void start();
void finish();

bool running();  // initialised and not finalised
int rank();
int size();
// The host of each rank, as the first rank on it; or DPCOMM_HOSTS. Collective.
std::vector<int> hosts();
std::string broadcast(std::string text);  // collective, from rank 0
std::string library();                    // name and version of the MPI
[[noreturn]] void abort(int code);        // ends every process of the job

// Over a duplicate of MPI_COMM_WORLD. Collective.
std::shared_ptr<Transport> transport(double timeout);

}  // namespace dpcomm::mpi
