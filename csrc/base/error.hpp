#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace dpcomm {

// Every error of ours says who (rank), what (the value) and how to mend it. The kind decides the
// Python exception (bindings/errors.cpp) and the exit code of a command.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller passed something that cannot be right. ValueError, exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

// The machine lacks something: memory, a library, a driver. dpcomm.EnvironmentError, exit code 3.
class EnvironmentError : public Error {
 public:
  using Error::Error;
};

// Ranks disagree on what they are doing. dpcomm.MismatchError, exit code 4.
class MismatchError : public Error {
 public:
  using Error::Error;
};

// A peer is dead. dpcomm.LostPeerError, exit code 4.
class LostPeerError : public Error {
 public:
  using Error::Error;
};

// A peer did not come before the deadline. dpcomm.TimeoutError, exit code 4.
class TimeoutError : public Error {
 public:
  using Error::Error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace dpcomm

// Throws `Kind` with the parts joined when the condition does not hold.
#define DPCOMM_CHECK(condition, Kind, ...)                       \
  do {                                                           \
    if (!(condition)) throw Kind(::dpcomm::concat(__VA_ARGS__)); \
  } while (0)
