#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string_view>

#include "engine/communicator.hpp"
#include "privacy/noise.hpp"
#include "privacy/update.hpp"

namespace dpcomm {

// Sums the ranks' gradients and updates the parameters, in one collective: it reads the gradients
// and hands out parameters, and between the two whoever completes an element adds its noise,
// divides, and takes the optimizer's step with what it alone keeps of the element. So the
// optimizer's state, and the parameters that are updated, exist once over all ranks, but where a
// schedule has several ranks complete an element (recursive doubling): those do the same.
//
// Who completes an element is the schedule's to say, and the same in every call, since the buffers,
// their length and the algorithm are: where none is given, the choice of the constructor stays,
// whatever is tuned later.
class ShardedUpdate {
 public:
  struct Settings {
    float scale;
    std::optional<Algorithm> algorithm;
    int threads;
  };

  // `parameters` must hold the same on all ranks. Collective, as all that follows.
  ShardedUpdate(Communicator& communicator, float* gradient, float* parameters, std::size_t count,
                int states, const Settings& settings);

  // This rank's gradients become one update of all ranks' parameters. The gradients' content
  // afterwards is of no meaning.
  void step(const NoiseSpec& noise, const Optimizer& optimizer);

  // out[count] = the optimizer's numbers of this kind, all ranks' together.
  void gather(int state, float* out);
  // The reverse, from the same numbers on all ranks.
  void restore(int state, const float* from);
  // After others changed the parameters, in the same way on all ranks.
  void adopt();

  const float* parameters() const { return parameters_; }
  float* gradient() const { return gradient_; }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  using Pages = std::unique_ptr<float[], Free>;

  bool alone() const { return communicator_.size() == 1; }
  Pages pages() const;
  void each_completed(std::string_view purpose, const Epilogue::Work& work);
  void hand_out_parameters();

  Communicator& communicator_;
  float* gradient_;
  float* parameters_;
  std::size_t count_;
  Settings settings_;
  // As long as the whole, but only what this rank completes is ever touched: the other pages stay
  // without memory.
  Pages owned_;  // parameters; none for one rank, which updates them where they are
  std::array<Pages, 2> states_;
};

void bind_sharded_update(pybind11::module_& module);

}  // namespace dpcomm
