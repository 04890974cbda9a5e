#pragma once

#include <cuda_pipeline_primitives.h>

#include "privacy/clip_task.cuh"

// The columns of one thread block, which may lie in several tensors, and their way into shared
// memory.

namespace dpcomm {

inline constexpr unsigned kVector = 16;  // bytes of the widest copy

// A run of columns in one GradBlock.
template <class T>
struct GradPiece {
  const T* data;  // of row 0
  std::size_t row_stride;
  unsigned count;
  unsigned column;     // its first one, counted from the slice's
  unsigned slot_byte;  // where it stands in a row's slot
  const T* begin;      // of the GradBlock's memory
  const T* end;

  __device__ const T* row(std::size_t r) const { return data + r * row_stride; }
  // A copy in shared memory is as far from a multiple of 16 bytes as its source.
  __device__ unsigned shift(std::size_t r) const {
    return static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(row(r)) % kVector);
  }
};

__host__ __device__ constexpr std::size_t slot_bytes_of(std::size_t bytes) {
  return (bytes + 2 * kVector - 2) / kVector * kVector;
}

// One thread block's columns [begin, end) of each row.
template <class T>
struct GradSlice {
  const ClipTask& task;
  std::size_t begin;
  std::size_t end;
  unsigned first_block = 0;
  std::size_t first_column = 0;  // of that block in the row

  __device__ GradSlice(const ClipTask& of, unsigned member)
      : task(of),
        begin(min(member * of.plan.slice, of.columns)),
        end(min(begin + of.plan.slice, of.columns)) {
    while (begin < end && first_column + task.block[first_block].columns <= begin) {
      first_column += task.block[first_block++].columns;
    }
  }

  __device__ unsigned count() const { return static_cast<unsigned>(end - begin); }

  template <class Function>
  __device__ void each_piece(Function function) const {
    std::size_t column = first_column;
    std::size_t slot_byte = 0;
    for (unsigned b = first_block; column < end; ++b) {
      const GradBlock& block = task.block[b];
      const std::size_t from = max(begin, column);
      const std::size_t to = min(end, column + block.columns);
      if (from < to) {
        const auto* data = static_cast<const T*>(block.data);
        function(GradPiece<T>{data + (from - column), block.row_stride,
                              static_cast<unsigned>(to - from), static_cast<unsigned>(from - begin),
                              static_cast<unsigned>(slot_byte), data,
                              data + (task.rows - 1) * block.row_stride + block.columns});
        slot_byte += slot_bytes_of((to - from) * sizeof(T));
      }
      column += block.columns;
    }
  }
};

// Starts to copy a piece of one row to its slot: vectors of 16 bytes, and at both edges words of 4,
// which may hold neighbours too; single elements only where the word would leave the memory.
template <class T>
__device__ void copy_piece(unsigned char* slot, const GradPiece<T>& piece, std::size_t row) {
  const unsigned begin = piece.shift(row);
  const unsigned end = begin + piece.count * unsigned{sizeof(T)};
  const unsigned head_end = min((begin + kVector - 1) / kVector * kVector, end);
  const unsigned tail = max(end / kVector * kVector, head_end);
  const auto* from = reinterpret_cast<const unsigned char*>(piece.row(row)) - begin;
  unsigned char* to = slot + piece.slot_byte;
  for (unsigned at = head_end + threadIdx.x * kVector; at < tail; at += kClipThreads * kVector) {
    __pipeline_memcpy_async(to + at, from + at, kVector);
  }
  if (threadIdx.x >= 8) return;
  const bool head = threadIdx.x < 4;
  const unsigned at = (head ? begin / 4 * 4 : tail) + threadIdx.x % 4 * 4;
  if (at >= (head ? head_end : end)) return;
  const auto* word = from + at;
  if (word >= reinterpret_cast<const unsigned char*>(piece.begin) &&
      word + 4 <= reinterpret_cast<const unsigned char*>(piece.end)) {
    __pipeline_memcpy_async(to + at, word, 4);
  } else {
    for (unsigned k = max(at, begin); k < min(at + 4, end); k += sizeof(T)) {
      *reinterpret_cast<T*>(to + k) = *reinterpret_cast<const T*>(from + k);
    }
  }
}

}  // namespace dpcomm
