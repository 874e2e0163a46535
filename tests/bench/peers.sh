#!/bin/bash
# peers.sh: build the other engines that kernels are compared with, if they are not there, and print their folder: llama.cpp
# (from the source that its Python package carries), kt-kernel, torch and candle. The first time takes a quarter
# of an hour and 8 GB.
set -euo pipefail
. "$(dirname "$0")/../cluster/env.sh"
here=$checkout/tests/bench/peers
llama=0.3.36
peers=$BELAY_CACHE/peers/$(cat "$here"/*.* "$here"/candle/*.* "$here"/candle/src/* <(echo "$llama") | sha256sum | cut -c1-8)
alone peers
if [ ! -f "$peers/complete" ]; then
  rm -rf "$peers"
  mkdir -p "$peers/ids" "$peers/llama"
  say "installing kt-kernel and torch"
  logged peers-venv python3 -m venv "$peers/venv"
  # what kt-kernel names beside these is for GPUs and for serving
  grep -v kt-kernel "$here/requirements.txt" >"$peers/requirements.txt"
  logged peers-pip "$peers/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$peers/requirements.txt"
  logged peers-kt "$peers/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$(grep kt-kernel "$here/requirements.txt")"
  say "building llama.cpp ($llama)"
  logged peers-llama "$peers/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
    "llama-cpp-python==$llama" -d "$peers/sdist"
  tar xzf "$peers"/sdist/*.tar.gz -C "$peers/llama" --strip-components=1
  source=$peers/llama/vendor/llama.cpp
  # a test of llama.cpp's writes the small model that llama_model.py starts from
  logged peers-cmake cmake -S "$source" -B "$peers/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
  logged peers-ninja ninja -C "$peers/build" ggml llama-bench test-llama-archs
  logged peers-link g++ -O2 -std=c++17 -I"$source/ggml/include" "$here/llama_moe.cpp" -o "$peers/llama_moe" \
    -L"$peers/build/bin" -lggml -lggml-base -lggml-cpu -Wl,-rpath,"$peers/build/bin"
  logged peers-candle env RUSTFLAGS="-C target-cpu=native" CARGO_TARGET_DIR="$peers/candle-build" \
    cargo build --locked --release --manifest-path "$here/candle/Cargo.toml"
  cp "$peers/candle-build/release/candle-peer" "$peers/"
  rm -r "$peers/candle-build"
  cp "$here"/*.py "$peers/"
  "$peers/venv/bin/python" "$peers/ids.py" "$peers/ids"
  mkdir "$peers/small"
  logged peers-archs "$peers/build/bin/test-llama-archs" -a deepseek4 -o "$peers/small"
  touch "$peers/complete"
fi
echo "$peers"
