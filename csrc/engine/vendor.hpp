#pragma once

#include "engine/arguments.hpp"
#include "transport/transport.hpp"

namespace dpcomm {

// The operation of the stamp by the collectives that the transport's library has of its own:
// reduce-scatter, all-gather, and all-reduce as one after the other, with the epilogue on the shard
// between them. So each element is worked out once, and has the same bits on every rank.
void run_vendor(Transport& transport, const Stamp& stamp, const Arguments& arguments,
                Scratch& scratch);

}  // namespace dpcomm
