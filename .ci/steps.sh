# Sourced by .ci/run and .ci/more: steps that are timed and counted. ends_with_counts() is the last line of both.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

passed=0 failed=0 step_seconds=0 step_cpu=0 steps=()

cpu_seconds() { awk '{print int(($16 + $17) / 100)}' "/proc/$$/stat"; }  # of all commands that have ended

# Ends a step: says how it came out, and what it took in seconds and in seconds of CPU (which tell more than the former
# on a machine that does other work too).
took() {  # took NAME OUTCOME
  local cpu line
  cpu=$(cpu_seconds)
  printf -v line '%6d s %6d s of CPU  %s: %s' $((SECONDS - step_seconds)) $((cpu - step_cpu)) "$1" "$2"
  printf 'ci: %s\n' "$line"
  steps+=("$line")
  step_seconds=$SECONDS step_cpu=$cpu
}

# Adds the cases of a ctest run, read from its log. A test program of GoogleTest counts its cases (of several processes
# those of the rank that says most), another test counts one; a test that failed without counting counts one failure,
# and one that was skipped as a whole counts nothing.
count() {
  local p f
  read -r p f < <(awk '
    function close_test() {
      if (!name) return
      if (bad && !f) f = 1
      if (!p && !f) p = 1
      if (!skipped) { passed += p; failed += f }
      name = ""; p = f = bad = skipped = 0
    }
    /^[0-9]+\/[0-9]+ Testing: / { close_test(); name = $3 }
    /\[  PASSED  \] [0-9]+ test/ { if ($4 > p) p = $4 + 0 }
    /\[  FAILED  \] [0-9]+ test.*listed below/ { if ($4 > f) f = $4 + 0 }
    /^Skip regular expression found/ { skipped = 1 }
    /^Test Failed\./ || /^Command: ""/ { bad = 1 }  # without a command: the program was not built
    END { close_test(); print passed + 0, failed + 0 }' "build/$1/Testing/Temporary/LastTest.log")
  passed=$((passed + p)) failed=$((failed + f))
}
check() {  # check NAME COMMAND...: a step that counts as one
  local name=$1
  shift
  if "$@"; then passed=$((passed + 1)) && took "$name" passed; else failed=$((failed + 1)) && took "$name" FAILED; fi
}
check_or_skip() {  # check_or_skip NAME COMMAND...: one that ends with 77 where the machine lacks what it needs, and then counts as none
  local name=$1 status=0
  shift
  "$@" || status=$?
  case $status in
    0) passed=$((passed + 1)) && took "$name" passed ;;
    77) took "$name" "skipped: the machine lacks what it needs" ;;
    *) failed=$((failed + 1)) && took "$name" FAILED ;;
  esac
}
without_passed() {  # drops the lines of cases that passed in silence: a failure is then easy to find
  sed -u -e '/^\[ RUN      \]/{N;/\n\[       OK \]/d;}' -e '/^\[----------\]/d' -e '/^$/d'
}
tests() {  # tests FOLDER COMMAND...: a step that runs ctest in build/FOLDER; a failure that no test counted counts as one
  local folder=$1 before=$failed status=0
  shift
  rm -f "build/$folder/Testing/Temporary/LastTest.log"
  "$@" 2>&1 | without_passed || status=${PIPESTATUS[0]}
  [ ! -e "build/$folder/Testing/Temporary/LastTest.log" ] || count "$folder"
  [ "$status" -eq 0 ] || [ "$failed" -gt "$before" ] || failed=$((failed + 1))
  took "$folder tests" "exit $status"
}
build() {  # build PRESET [OPTION OF CMAKE...]: configures and builds the preset's targets
  local preset=$1
  shift
  cmake --preset "$preset" --log-level=NOTICE "$@" && cmake --build --preset "$preset"
}
run_tests() { ctest --preset "$1" --parallel "$(nproc)"; }

# There is a clang with libFuzzer.
can_fuzz() {
  command -v clang++ >/dev/null &&
    echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    clang++ -fsanitize=fuzzer,address,undefined -x c++ - -o /dev/null 2>/dev/null
}
# Fuzzes every reader of files to a limit of libFuzzer's, from the corpus of the repository; what is found stays in
# build/FOLDER/fuzz. A seed of 0 is another one each time.
fuzz() {  # fuzz PRESET -max_total_time=SECONDS|-runs=N SEED
  local target folder="build/$1/fuzz"
  check "fuzzers build" build_fuzzers "$1"
  for target in tests/fuzz/corpus/*/; do
    target=$(basename "$target")
    mkdir -p "$folder/$target"
    check "fuzz $target" env ALLNORM_FUZZ_TARGET="$target" "build/$1/tests/fuzz/fuzzer" "$2" -seed="$3" -max_len=8192 \
      -rss_limit_mb=2048 -artifact_prefix="$folder/$target/" -print_final_stats=1 -verbosity=0 "$folder/$target" "tests/fuzz/corpus/$target"
  done
}
build_fuzzers() {
  cmake --preset "$1" --log-level=NOTICE -D ALLNORM_BUILD_FUZZERS=ON && cmake --build --preset "$1" --target fuzzers
}

ends_with_counts() {
  printf 'ci: %s\n' "${steps[@]}"
  printf 'ci: %6d s %6d s of CPU  in all\n' "$SECONDS" "$(cpu_seconds)"
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}
