// Every kernel over small inputs that reach each of its paths, for the sanitizers. The results are
// held by test_kernels.py; here it is enough to run.

#include <cstdio>
#include <vector>

#include "privacy/clip_cuda.hpp"
#include "privacy/noise_cuda.hpp"
#include "simt/machine.hpp"

namespace dpcomm {
namespace {

void noise(Generator generator, std::size_t count, std::uint64_t offset) {
  std::vector<float> data(count, 1.0f);
  add_noise(data.data(), count, offset, {.key = {}, .generator = generator, .step = 1, .std = 1.0},
            nullptr);
}

// `element` bytes of an arbitrary but finite pattern; rows lie side by side.
void clip(DType dtype, std::size_t rows, std::vector<std::size_t> columns) {
  std::size_t all = 0;
  std::vector<std::vector<std::uint16_t>> memory;
  std::vector<GradBlock> blocks;
  for (const std::size_t count : columns) {
    memory.emplace_back(rows * count * size_of(dtype) / 2, std::uint16_t{0x3c01});
    blocks.push_back({memory.back().data(), count, count});
    all += count;
  }
  const ClipPlan plan = clip_plan(blocks, rows, dtype);
  std::vector<float> total(all);
  std::vector<double> norms(rows);
  std::vector<double> workspace((plan.workspace_bytes + 7) / 8);
  std::int64_t nonfinite = -1;
  clip_sum(plan, blocks, rows, dtype, 1.0, total.data(), norms.data(), &nonfinite, workspace.data(),
           nullptr);
  std::printf("clip %zu x %zu %s: %u teams of %u, groups of %u rows, %lld not finite\n", rows, all,
              std::string(name_of(dtype)).c_str(), plan.teams, plan.members, plan.group_rows,
              static_cast<long long>(nonfinite));
}

}  // namespace
}  // namespace dpcomm

int main() {
  using dpcomm::DType;
  for (const auto generator : {dpcomm::Generator::kChaCha20, dpcomm::Generator::kPhilox}) {
    dpcomm::noise(generator, 1, 511);
    dpcomm::noise(generator, 5000, 77);
  }
  dpcomm::simt::device() = {.multiprocessors = 4, .shared_bytes = 16 << 10};
  for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    dpcomm::clip(dtype, 7, {33});
    dpcomm::clip(dtype, 9, {701, 1, 330});
    dpcomm::clip(dtype, 5, {2047});
    dpcomm::clip(dtype, 3, {9001, 12});
  }
}
