#!/bin/bash
# npu-image.sh: an image of a worker on simulated NPUs, out/images/test-worker-npu.tar.
# CANN is loaded at run time, which a static program cannot do: this one is linked to the C library of this machine, which
# comes along. For tests only; images/ascend.Dockerfile is the recipe for real NPUs.
set -euo pipefail
. "$(dirname "$0")/env.sh"
cd "$checkout"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target}
folder=$CARGO_TARGET_DIR/npu-image
mkdir -p "$folder"

cargo build --locked -p belay-worker -p belay-ascend-sim >&2
strip -o "$folder/belay-worker" "$CARGO_TARGET_DIR/debug/belay-worker"
strip --strip-debug -o "$folder/libbelay_ascend_sim.so" "$CARGO_TARGET_DIR/debug/libbelay_ascend_sim.so"

# the loader and the libraries, at the places where the loader looks for them
libraries=()
while read -r file; do
  libraries+=(--add "$(readlink -f "$file")=$file")
done < <(ldd "$folder/belay-worker" "$folder/libbelay_ascend_sim.so" | grep -o '/[^ ]*' | grep -v ':$' | sort -u)

"$CARGO_TARGET_DIR/$(uname -m)-unknown-linux-musl/release/belay-images" write \
  --name belay.test/belay-worker-npu:test --out out/images/test-worker-npu.tar \
  --label org.opencontainers.image.title=belay-worker-npu \
  --binary "$folder/belay-worker" --entrypoint /belay-worker --user 65532 \
  --add "$folder/libbelay_ascend_sim.so=/lib/libbelay_ascend_sim.so" "${libraries[@]}"
