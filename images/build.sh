#!/bin/bash
# Build the static programs and write their images to out/images/*.tar, without a container engine.
set -euo pipefail
. "$(dirname "$0")/../tests/cluster/env.sh"
cd "$checkout"
target=$(uname -m)-unknown-linux-musl
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
registry=${BELAY_REGISTRY:-ghcr.io/belay-dev}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target}
release=$CARGO_TARGET_DIR/$target/release
programs=(belay-worker belay-gateway belay-operator)

say "building ${programs[*]} for $target (from nothing: some minutes)"
cargo build --release --locked --target "$target" -p belay-images "${programs[@]/#/-p}" >&2

write() { # NAME TITLE ARGUMENT...
  local name=$1 title=$2; shift 2
  "$release/belay-images" write --name "$registry/$name:$version" --out "out/images/$name.tar" \
    --label "org.opencontainers.image.title=$title" \
    --label "org.opencontainers.image.version=$version" \
    --label org.opencontainers.image.source=https://github.com/belay-dev/belay \
    --label org.opencontainers.image.licenses=Apache-2.0 "$@"
}
for program in "${programs[@]}"; do
  if ldd "$release/$program" 2>&1 | grep -q '=>'; then die "$program is not static"; fi
  write "$program" "$program" --binary "$release/$program" --entrypoint "/$program" --user 65532
done
# the example model as an image volume, for clusters whose nodes do not have it
write model-nano "nano: a tiny DeepSeek-V4 model" --add tests/fixtures/models/nano/bf16=/bf16
