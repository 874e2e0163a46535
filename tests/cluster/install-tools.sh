#!/bin/bash
# install-tools.sh [build]: install what this machine lacks, from the distribution's packages.
# build: only what lint and unit tests need; else also what images, a kind cluster and its tests need.
set -euo pipefail
. "$(dirname "$0")/env.sh"

command -v cargo > /dev/null || die "no cargo: install a Rust toolchain first (https://rustup.rs; rust-toolchain.toml names the version)"
command -v go > /dev/null || die "no go: install Go 1.26 or newer first (https://go.dev/dl)"
go_minor=$(go env GOVERSION | sed -E 's/^go1\.([0-9]+).*/\1/')
[ "$go_minor" -ge 26 ] || die "$(go env GOVERSION) is too old: Kubernetes $KUBERNETES_VERSION is built with Go 1.26 or newer"

missing=()
why=()
need() { # COMMAND PACKAGE REASON
  command -v "$1" > /dev/null || [ -x "/usr/sbin/$1" ] || { missing+=("$2"); why+=("  $2: $3"); }
}
need curl        curl        "asks the gateway over HTTP"
need jq          jq          "reads JSON in the scripts"
need flock       util-linux  "one run at a time"
need gcc         gcc         "links Rust programs, and builds the pause program"
[ -f /usr/include/stdio.h ] || [ -f "/usr/include/$(uname -m)-linux-gnu/stdio.h" ] || { missing+=(libc6-dev); why+=("  libc6-dev: C headers"); }
if [ "${1:-}" != build ]; then
  need musl-gcc    musl-tools  "C parts of static binaries"
  need python3     python3     "runs client packages against the gateway (make test)"
  python3 -c 'import ensurepip' 2> /dev/null || { missing+=(python3-venv); why+=("  python3-venv: a place for these packages (make test)"); }
  need debootstrap debootstrap "root of the node image, where kindest/node can't be pulled or does not run"
  choose_docker
  if command -v docker > /dev/null && docker_answers "${DOCKER_HOST:-}"; then
    say "a Docker daemon answers at ${DOCKER_HOST:-the default address}: it is used as it is"
  else
    need docker      docker.io   "runs the nodes of kind"
    need dockerd     docker.io   "runs the nodes of kind"
    need runc        runc        "runs the nodes of kind"
    need iptables    iptables    "Docker's networks"
    need ip          iproute2    "a bridge for our Docker daemon"
  fi
fi

if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  say "this machine lacks: ${missing[*]}"
  printf '%s\n' "${why[@]}" | sort -u >&2
  command -v apt-get > /dev/null || die "no apt-get here: install these by hand, then run this again"
  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo > /dev/null || die "neither root nor sudo: ask for 'apt-get install ${missing[*]}'"
    as_root=(sudo)
  fi
  say "apt-get install ${missing[*]} (log: $logs/apt.log)"
  # the daemon of the package would take the default socket and bridge, and fails in containers: not started
  logged apt "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 sh -c \
    'apt-get update -q && apt-get install -qy --no-install-recommends "$@"' apt "${missing[@]}"
fi

target=x86_64-unknown-linux-musl
if command -v rustup > /dev/null && ! (cd "$checkout" && rustup target list --installed | grep -qx "$target"); then
  say "rustup target add $target"
  (cd "$checkout" && logged rustup rustup target add "$target")
fi
