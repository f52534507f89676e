// Where the events of a training go while it runs: JSON lines or CSV, and TensorBoard.
#pragma once

#include <optional>
#include <string>

#include "launch/files/event_file.hpp"
#include "launch/files/growing_file.hpp"
#include "launch/train/events.hpp"

namespace allnorm::launch::train {

class EventLog {
 public:
  /// Throws invalid_input where what `settings` names cannot be written.
  explicit EventLog(const Settings& settings);
  void write(const Json& event);

 private:
  std::string board_;  // the folder of TensorBoard; empty: none
  bool csv_;
  GrowingFile file_;
  std::string run_;  // the folder of the run that is under way
  std::optional<EventFile> of_run_;
};

}  // namespace allnorm::launch::train
