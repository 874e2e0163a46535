#!/bin/bash
# asan.sh [PROGRAM…]: the tests of worker/ascend and of the simulator they run against, both built with AddressSanitizer: no
# use of freed or foreign memory, and no leak at the end of a program. Without names: every test program but those whose work
# is the model's (golden, nano, quantised), which would take hours and touch no other code of the wrapper.
# The sanitizer is not a stable option of the compiler; RUSTC_BOOTSTRAP lets the pinned one take it.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${BELAY_CACHE:-$HOME/.cache/belay}
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1 CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=$cache/target/asan RUST_BACKTRACE=0
# symbols of the test program are what the dlopened simulator finds the sanitizer's runtime by
export RUSTFLAGS="-Zsanitizer=address -Cdebuginfo=1 -Clink-arg=-Wl,--export-dynamic"
export ASAN_OPTIONS=detect_leaks=1
# what a lost device may still write to is left to it on purpose: the test of that is the one that may leak
suppressions=$(mktemp)
trap 'rm -f "$suppressions"' EXIT
echo "leak:memory_that_a_lost_device_may_still_write_is_left_and_counted" > "$suppressions"
export LSAN_OPTIONS=suppressions=$suppressions:print_suppressions=0

programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(lib device libraries model operators faults hccl rounds fused backend_faults)
failed=0
echo "| program | tests | result | seconds |"
echo "|---|---|---|---|"
for program in "${programs[@]}"; do
  chosen=(--test "$program")
  [ "$program" != lib ] || chosen=(--lib)
  log=$cache/logs/asan-$program.log
  mkdir -p "$(dirname "$log")"
  begun=$SECONDS
  result=clean
  cargo test --locked --target "$target" -p belay-ascend "${chosen[@]}" > "$log" 2>&1 || result=failed
  # a child's report is in what its parent says
  ! grep -q 'AddressSanitizer\|LeakSanitizer' "$log" || result=failed
  tests=$(sed -n 's/^test result: [a-zA-Z]*\. \([0-9]*\) passed.*/\1/p' "$log" | tail -1)
  echo "| $program | ${tests:-0} | $result | $((SECONDS - begun)) |"
  [ "$result" = clean ] || { failed=1; tail -40 "$log" >&2; }
done
exit $failed
