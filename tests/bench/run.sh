#!/bin/bash
# run.sh kernels | forward | serving | fabric | gateway | load | soak [OPTION...]: build belay-bench as it would be shipped, and run a part of it
set -euo pipefail
. "$(dirname "$0")/../cluster/env.sh"
cd "$checkout"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target}
[ $# -gt 0 ] || die "usage: run.sh kernels | forward | serving | fabric | gateway | load | soak [OPTION...]"
part=$1
shift
tests/cluster/install-tools.sh build
cargo build --quiet --locked --release -p belay-bench
bench=$CARGO_TARGET_DIR/release/belay-bench
alone bench # one after the other: they measure
case $part in
serving | fabric | soak) "$bench" "$part" "$@" ;;
kernels)
  peers=$(tests/bench/peers.sh)
  "$bench" kernels --peers "$peers" "$@"
  ;;
forward)
  peers=$(tests/bench/peers.sh)
  model=$peers/7b.gguf
  [ -f "$model" ] || "$peers/venv/bin/python" "$peers/llama_model.py" "$peers/small/deepseek4-moe.gguf" "$model"
  "$bench" forward --llama "$peers/build/bin/llama-bench" --llama-model "$model" "$@"
  ;;
gateway) "$bench" proxy "$@" ;;
load)
  python=$(tests/cluster/python.sh)
  eval=tests/fixtures/models/nano/eval.jsonl
  # shellcheck disable=SC2016 # expanded by the inner shell
  "$bench" with-servers --model nano "$@" -- \
    bash -c 'exec "$0" tests/e2e/clients/aiperf_client.py "${BELAY_URL#http://}" "$BELAY_MODEL" "$1" 256 16' "$python" "$eval"
  ;;
*) die "no part is called $part" ;;
esac
