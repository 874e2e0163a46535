#!/bin/bash
# docker.sh start | stop: a Docker daemon for kind.
# A daemon that answers already (DOCKER_HOST, ours from an earlier run, the machine's) is used as it is; else one of
# our own is started, with all of its state under $BELAY_CACHE/docker.
set -euo pipefail
. "$(dirname "$0")/env.sh"
home=$BELAY_CACHE/docker
bridge=belay0

start() {
  choose_docker
  command -v docker > /dev/null || die "no docker program: run tests/cluster/install-tools.sh"
  if docker_answers "${DOCKER_HOST:-}"; then
    say "Docker: ${DOCKER_HOST:-the default daemon}"
    return
  fi
  [ -z "${DOCKER_HOST:-}" ] || die "no Docker daemon answers at DOCKER_HOST=$DOCKER_HOST"
  [ "$(id -u)" = 0 ] || die "no Docker daemon answers, and only root can start one"
  [ ${#own_docker} -lt 100 ] || die "BELAY_CACHE is too long for a socket's path: $BELAY_CACHE"
  PATH=$PATH:/usr/sbin:/sbin
  command -v dockerd > /dev/null || die "no dockerd program: run tests/cluster/install-tools.sh"

  mkdir -p "$home"
  # a process that is gone can't hold the pid file, but its number may belong to somebody else by now
  if [ -f "$home/docker.pid" ] && ! grep -qs dockerd "/proc/$(cat "$home/docker.pid")/cmdline"; then
    rm -f "$home/docker.pid"
  fi
  # a bridge of its own: a second daemon would delete the docker0 of the first
  ip link show $bridge > /dev/null 2>&1 || ip link add $bridge type bridge
  ip addr show dev $bridge | grep -q 'inet ' || ip addr add 10.201.255.1/24 dev $bridge
  local runtime=()
  if ! has_sys_resource; then # kind runs everything with --privileged, which asks for that capability too
    command -v jq > /dev/null || die "no jq program: run tests/cluster/install-tools.sh"
    install -m 755 "$scripts/runc-wrap" "$home/runc-wrap" # the daemon outlives the checkout
    runtime=(--add-runtime "nosysres=$home/runc-wrap" --default-runtime nosysres)
  fi
  say "Docker: starting a daemon of our own (log: $home/dockerd.log)"
  setsid dockerd --data-root "$home/data" --exec-root "$home/exec" -H "$own_docker" -p "$home/docker.pid" \
    --bridge $bridge "${runtime[@]}" > "$home/dockerd.log" 2>&1 < /dev/null 9>&- &
  for _ in $(seq 120); do
    docker_answers "$own_docker" && return
    sleep 0.5
  done
  tail -n 20 "$home/dockerd.log" >&2
  die "the Docker daemon did not come up"
}

stop() {
  [ -f "$home/docker.pid" ] || { say "Docker: no daemon of ours runs"; return; }
  local pid
  pid=$(cat "$home/docker.pid")
  if grep -qs -- "$home/docker.pid" "/proc/$pid/cmdline"; then
    say "Docker: stopping our daemon ($pid)"
    kill "$pid"
    for _ in $(seq 60); do
      [ -d "/proc/$pid" ] || break
      sleep 0.5
    done
  fi
  rm -f "$home/docker.pid"
  ip link del $bridge 2> /dev/null || true
}

case ${1:-} in
start) alone docker; start ;;
stop) alone docker; stop ;;
*) die "usage: docker.sh start | stop" ;;
esac
