// Errors of the host code: every message carries the requirement and the value that broke it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pykernels {

/// An argument is not as documented. Becomes a Python ValueError.
class ArgumentError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// The machine is not as needed (no GPU, wrong driver, a failed driver call). Becomes a
/// RuntimeError.
class EnvironmentError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The values, streamed one after another into one string.
template <typename... Values>
std::string concat(const Values&... values) {
  std::ostringstream stream;
  (stream << ... << values);
  return stream.str();
}

}  // namespace pykernels

/// Throws ArgumentError unless the condition holds: PK_CHECK(n % 8 == 0, "n must be ..., got ", n).
#define PK_CHECK(condition, ...)                                                          \
  do {                                                                                    \
    if (!(condition)) throw ::pykernels::ArgumentError(::pykernels::concat(__VA_ARGS__)); \
  } while (false)
