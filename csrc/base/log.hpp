#pragma once

#include <string_view>

namespace dpcomm {

enum class LogLevel { kWarn, kInfo, kTrace };

// Whether DPCOMM_DEBUG asks for the level.
bool logs(LogLevel level);

// One line on stderr, `dpcomm: rank 3/8: …`, written whole, when DPCOMM_DEBUG asks for the level.
void log(LogLevel level, std::string_view message);

// Who speaks; set once the rank is known.
void set_log_rank(int rank, int size);

}  // namespace dpcomm
