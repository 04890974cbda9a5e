#pragma once

struct CUstream_st;

namespace dpcomm {

// CUDA's cudaStream_t, for headers that are also read where CUDA is not.
using Stream = CUstream_st*;

}  // namespace dpcomm
