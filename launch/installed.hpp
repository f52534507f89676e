// Where this program's own files are: beside it, as in a build tree, or where an installation has them.
#pragma once

#include <string>
#include <vector>

namespace allnorm::launch {

/// This program's file.
std::string this_program();
/// The program that `allnorm train` starts. Throws unsupported where it is not there.
std::string train_program();
/// The program that `allnorm scale --cluster` starts; the same.
std::string simulator_program();
/// The folder `name` of data: beside this program as in a build tree, else `installed`, seen from the program's folder.
std::string data_folder(const char* name, const char* installed);
/// The names in order, without their ending, of the .json files of a folder; none where it is not there.
std::vector<std::string> json_names(const std::string& folder);
/// The folder of the digits: data/digits of the current folder, else that of the tree or the installation that this
/// program is in; "data/digits" where there is none.
std::string digits_folder();

}  // namespace allnorm::launch
