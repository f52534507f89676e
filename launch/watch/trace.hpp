// A rank's trace in the format of Chrome and Perfetto.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace allnorm::launch {

/// A JSON array of events, complete after every one of them: a process that is killed leaves a file that can be opened.
class Trace {
 public:
  /// Throws invalid_input where the file cannot be written.
  Trace(std::string path, int rank);
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  /// Something begins, inside what has begun before, and ends. Times in seconds. What cannot be written is a warning,
  /// once, and the trace ends there.
  void begin(std::string_view category, const std::string& name, double time, const nlohmann::json& arguments);
  void end(double time, const nlohmann::json& arguments);
  /// The same of what may overlap others of its kind, and end after what it began in: viewers give it a track of its
  /// own. `number` tells it from others of the category in this process.
  void begin_apart(std::string_view category, std::uint64_t number, const std::string& name, double time,
                   const nlohmann::json& arguments);
  void end_apart(std::string_view category, std::uint64_t number, const std::string& name, double time,
                 const nlohmann::json& arguments);

 private:
  void write_apart(char phase, std::string_view category, std::uint64_t number, const std::string& name, double time,
                   const nlohmann::json& arguments);
  void write(const nlohmann::json& event);

  std::string path_;
  int rank_, descriptor_ = -1;
  std::int64_t end_ = 0;  // where the array's bracket is
};

}  // namespace allnorm::launch
