// The program that `allnorm train` starts, with the words after the command's name.
#include "launch/guard.hpp"
#include "launch/train/train.hpp"

int main(int argc, char** argv) { return allnorm::launch::guard(argc, argv, allnorm::launch::train::run_train); }
