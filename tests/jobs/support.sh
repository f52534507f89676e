# Sourced by the tests of jobs, which start real launchers: a folder of their own in which they run, and checks that are counted. A
# test ends with 77, and one line that says why, where the machine lacks what it needs. It defines clean_up(), which ends all that it started.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
name=tests/jobs/$(basename "$0")
passed=0 failed=0 code=0

skip() { echo "$name: skipped: $*" && exit 77; }
needs() {  # needs PROGRAM PACKAGE
  command -v "$1" >/dev/null || skip "there is no $1 (Debian, Ubuntu: $2)"
}
# The program's full name; every host here has the same files.
program=$(realpath "${1:-$root/build/cpu/launch/allnorm}") && [ -x "$program" ] || { echo "$name: $program is no program" >&2; exit 2; }
place=$(mktemp -d "${TMPDIR:-/tmp}/allnorm-jobs-XXXXXX") && chmod 755 "$place" && cd "$place" || exit 1
said=$place/said
trap 'clean_up; rm -rf "$place"' EXIT
trap 'exit 130' INT TERM
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1

# Runs a command, at most two minutes; what it says is in $said, its code in $code.
run() { timeout --kill-after=5 120 "$@" >"$said" 2>&1 </dev/null; code=$?; }
starts() { { run "$@" && exit "$code"; } & }  # the same in the background, as $!
holds() {  # holds WHAT COMMAND...: a check
  local what=$1
  shift
  if "$@" >/dev/null 2>&1; then
    passed=$((passed + 1)) && echo "ok      $what"
  else
    failed=$((failed + 1)) && echo "FAILED  $what: $*" && sed 's/^/        /' "$said"
  fi
}
ends() { holds "$2: code $1" [ "$code" -eq "$1" ]; }  # ends CODE WHAT: of the last run
says() { holds "  it says: $1" grep -qF -- "$1" "$said"; }
says_once() { holds "  it says once: $1" [ "$(grep -cF -- "$1" "$said")" -eq 1 ]; }
becomes() {  # becomes SECONDS COMMAND...: waits until it holds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}
same() { cmp "$1" "$2"; }
# The log of a training without what differs from run to run: times, and how the ranks were started.
events() { python3 -c 'import json, sys
for line in open(sys.argv[1]): print({k: v for k, v in json.loads(line).items() if k not in ("seconds", "transport")})' "$1"; }
same_events() { diff <(events "$1") <(events "$2") && grep -q '"done"\|"test_error"\|"epoch"' "$1"; }
has_lines() { [ "$(wc -l <"$1")" -ge "$2" ]; }  # has_lines FILE NUMBER: at least so many
is_at_work() { [ "$(stat -c %s "trace.$1")" -gt 4000 ]; }  # is_at_work RANK: it exchanges, and writes that into its trace
array() {  # array NAME.npy LENGTH...: an array of doubles
  python3 -c 'import math, struct, sys
shape = tuple(map(int, sys.argv[2:]))
count = math.prod(shape)
head = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
values = struct.pack(f"<{count}d", *(math.sin(3 * i) + i / 4 for i in range(count)))
open(sys.argv[1], "wb").write(b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + values)' "$@"
}
ends_with_counts() {  # ends_with_counts [NUMBER]: of checks that there must have been
  echo "$name: $passed passed, $failed failed${1:+, of $1}"
  [ "$failed" -eq 0 ] && [ "$passed" -eq "${1:-$passed}" ]
}
