#include "transport/segment.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <new>
#include <vector>

#include "base/cache.hpp"
#include "base/error.hpp"

namespace dpcomm {
namespace {

// All streams together take this much at most, each between 16 and 256 KiB.
constexpr std::size_t kStreamsTotal = std::size_t{16} << 20;

std::size_t capacity_for(int size) {
  const std::size_t pairs = std::max(1, size * (size - 1));
  return std::clamp(std::bit_floor(kStreamsTotal / pairs), std::size_t{16} << 10,
                    std::size_t{256} << 10);
}

// All arenas together: what is mapped is the address space's, of which a process has 128 TiB, and
// each split maps as much again.
constexpr std::size_t kArenasTotal = std::size_t{4} << 40;

std::size_t whole_pages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

std::size_t physical_memory() {
  return static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE) / kPage *
         kPage;
}

// Fields 3 (state) and 22 (start time) of /proc/PID/stat; state 'X' where there is no such process.
struct ProcessState {
  char state = 'X';
  std::uint64_t born = 0;
};

ProcessState look_up(int pid) {
  std::ifstream file(concat("/proc/", pid, "/stat"));
  std::string text;
  if (!std::getline(file, text)) return {};
  // The name, in parentheses, may hold anything; what follows the last one is plain.
  std::istringstream fields(text.substr(text.rfind(')') + 1));
  ProcessState found;
  fields >> found.state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  fields >> found.born;
  return found;
}

}  // namespace

std::string describe_doing(std::uint64_t doing) {
  if (doing == 0) return "no collective yet";
  return concat(name_of(static_cast<Operation>(doing & 0xff)), " #", doing >> 8);
}

Segment::Layout::Layout(int size, bool threads) {
  const std::size_t ranks = size;
  capacity = capacity_for(size);
  arena_bytes = threads ? 0 : std::min(physical_memory(), kArenasTotal / ranks / kPage * kPage);
  members = sizeof(Failure);
  streams = members + ranks * sizeof(Member);
  bytes = streams + ranks * ranks * sizeof(ByteStream);
  boards = bytes + ranks * ranks * capacity;
  arenas = whole_pages(boards + ranks * sizeof(Board));
  end = arenas + ranks * arena_bytes;
}

// Zeroed memory is a valid start for every object in it, so that no rank must come first.
Segment::Segment(std::byte* base, int size, bool threads)
    : base_(base), size_(size), threads_(threads), layout_(size, threads) {}

Segment::~Segment() { ::munmap(base_, layout_.end); }

std::shared_ptr<Segment> Segment::of_threads(int size) {
  const std::size_t bytes = Layout(size, true).end;
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  DPCOMM_CHECK(base != MAP_FAILED, EnvironmentError, "cannot map ", bytes, " bytes for ", size,
               " ranks: ", std::strerror(errno));
  std::shared_ptr<Segment> segment(new Segment(static_cast<std::byte*>(base), size, true));
  segment->crowded_ = dpcomm::crowded(std::vector<cpu_set_t>(size, own_cores()));
  return segment;
}

std::shared_ptr<Segment> Segment::of_processes(const Meeting& meeting) {
  const std::size_t bytes = Layout(meeting.size, false).end;
  const int memory = share_memory(meeting, bytes);
  void* base =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memory, 0);
  const int reason = errno;
  ::close(memory);
  DPCOMM_CHECK(base != MAP_FAILED, EnvironmentError, "rank ", meeting.rank, " cannot map ", bytes,
               " shared bytes: ", std::strerror(reason), "\n  fix: see ulimit -v");
  std::shared_ptr<Segment> segment(new Segment(static_cast<std::byte*>(base), meeting.size, false));
  Member& self = segment->member(meeting.rank);
  self.born = look_up(::getpid()).born;
  self.cores = own_cores();
  self.pid = ::getpid();
  segment->await_members(meeting);
  std::vector<cpu_set_t> cores;
  for (int rank = 0; rank < meeting.size; ++rank) cores.push_back(segment->member(rank).cores);
  segment->crowded_ = dpcomm::crowded(cores);
  return segment;
}

void Segment::await_members(const Meeting& meeting) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(meeting.timeout);
  for (int rank = 0; rank < size_; ++rank) {
    while (member(rank).pid == 0) {
      DPCOMM_CHECK(std::chrono::steady_clock::now() < deadline, TimeoutError, "timeout ",
                   meeting.timeout, " s while the ranks met\n  rank ", rank,
                   " came, and ended before it could map the shared memory: see its log above");
      if (meeting.on_wait) meeting.on_wait();
      ::usleep(500);
    }
  }
}

void Segment::leave(int rank) {
  if (!threads_ && member(rank).pid != ::getpid()) return;
  member(rank).left = true;
  for (int peer = 0; peer < size_; ++peer) member(peer).bell.ring();
}

std::string Segment::gone(int rank) {
  Member& other = member(rank);
  if (other.left.load()) return "left the job";
  const int pid = other.pid.load();
  if (threads_ || pid == 0) return {};
  const ProcessState process = look_up(pid);
  const bool lives = process.state != 'X' && process.state != 'Z' && process.born == other.born;
  return lives ? std::string() : concat("was killed or crashed (pid ", pid, ")");
}

}  // namespace dpcomm
