#pragma once

#include <cstddef>
#include <vector>

#include "engine/arguments.hpp"
#include "transport/shm.hpp"

namespace dpcomm {

// Every collective where ranks see each other's memory: one pass over the peers' buffers, between
// two meetings. A sum that several ranks want is worked out in slices, each by one rank, which
// reads the slice of all inputs and writes it to all results: a line that is written has been read,
// so no store waits for memory to be fetched. In all others each rank reads what it wants.
//
// Inputs that peers cannot see go window by window through staging memory that they can; tiny ones
// are posted whole. Additions are in the order of ranks, so that all of these, and the rounds of
// messages of the same name, give the same bits.
class Direct {
 public:
  Direct(ShmTransport& memory, int rank, int size);

  // The operation of the stamp; see Communicator for what each one reads and writes.
  void run(const Stamp& stamp, const Arguments& arguments);

 private:
  bool parted() const;         // an input has a block for each rank
  bool one_result() const;     // which is the same wherever it is wanted
  bool sliced() const;         // ranks share the work of it
  bool gives(int rank) const;  // has an input
  bool takes(int rank) const;  // wants the result

  struct Range {
    std::size_t begin;
    std::size_t end;
  };

  void run_posted();
  void run_in_place();
  void run_staged();
  bool visible();
  std::size_t input_bytes(std::size_t count) const;

  void take_windows(std::size_t windows);
  void reduce_windows(std::size_t windows);
  std::size_t window() const;
  std::size_t window_count(std::size_t index) const;
  std::byte* staging(int rank, std::size_t index) const;
  void give_window(std::size_t index);
  void see_window(std::size_t index);
  void gather_window(std::size_t index);
  void give(std::byte* to, std::size_t begin, std::size_t count);
  template <class Where>
  void see(std::size_t begin, std::size_t count, Where where);
  void scale_own();

  Range slice(int rank, std::size_t count) const;
  void reduce_all(std::size_t begin, std::size_t count);
  void reduce(std::size_t begin, std::size_t count);
  void take(std::size_t begin, std::size_t count);
  void take_from(int peer, std::byte* to, std::size_t begin, std::size_t count);
  void complete(void* done, std::size_t offset, std::size_t count);

  ShmTransport& memory_;
  int rank_;
  int size_;
  std::size_t windows_ = 0;  // that went through staging memory

  // Of the present call.
  const Stamp* stamp_ = nullptr;
  const Arguments* call_ = nullptr;
  std::size_t width_ = 0;                 // bytes of an element
  std::size_t origin_ = 0;                // the element at which inputs_ and results_ begin
  std::vector<const std::byte*> inputs_;  // [rank], of the block that this rank reads
  std::vector<std::byte*> results_;       // of each rank that takes the one result
  std::vector<double> scales_;            // [rank], where inputs_ are not yet scaled

  // Of a piece.
  std::vector<const void*> parts_;
  std::vector<void*> outs_;
};

}  // namespace dpcomm
