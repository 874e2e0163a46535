# Sourced by the scripts of this folder: versions, places, and how they speak.
# Nothing is written outside $BELAY_CACHE and the checkout (Go and cargo keep their own caches as always).

KUBERNETES_VERSION=v1.37.2
ETCD_VERSION=v3.7.0            # `kubeadm config images list` names this and the next two
COREDNS_VERSION=v1.14.6
PAUSE_VERSION=3.10.2
KIND_VERSION=v0.33.0
CONTAINERD_VERSION=v2.4.2
CNI_VERSION=v1.9.1
CRICTL_VERSION=v1.36.0
HELM_VERSION=v4.3.1
GRPCURL_VERSION=v1.9.4
KWOK_VERSION=v0.8.0            # plays nodes and kubelets for `make scale`
KEDA_VERSION=v2.21.0           # this and the next two for `make e2e-autoscaling`
METRICS_SERVER_VERSION=v0.9.0
PROMETHEUS_VERSION=v0.316.0    # Prometheus 3.16
CARGO_DENY_VERSION=0.20.2
GATEWAY_API_VERSION=v1.4.0     # whose definitions the chart's HTTPRoute is checked against
# what `kind` $KIND_VERSION takes by itself, where images can be pulled
PULLED_NODE_IMAGE=kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$scripts/../.." && pwd)
BELAY_CACHE=${BELAY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/belay}
mkdir -p "$BELAY_CACHE"
BELAY_CACHE=$(cd "$BELAY_CACHE" && pwd)
BELAY_CLUSTER=${BELAY_CLUSTER:-belay}

# A program folder per set of versions: two checkouts with different versions can share a cache.
versions_key=$(grep -E '^[A-Z]+_VERSION=' "$scripts/env.sh" | sha256sum | cut -c1-8)
BELAY_BIN=$BELAY_CACHE/tools/$versions_key/bin
node_bin=$BELAY_CACHE/tools/$versions_key/node # never on the PATH: Docker would start the nodes' containerd
cluster_home=$BELAY_CACHE/clusters/$BELAY_CLUSTER
BELAY_KUBECONFIG=$cluster_home/kubeconfig
BELAY_MODELS=$cluster_home/models      # /belay/models of every node
logs=$BELAY_CACHE/logs
mkdir -p "$logs" "$BELAY_BIN" "$node_bin"
PATH=$BELAY_BIN:$PATH
export BELAY_CACHE BELAY_BIN BELAY_CLUSTER BELAY_MODELS PATH

own_docker=unix://$BELAY_CACHE/docker/docker.sock

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf '\033[31mfailed:\033[0m %s\n' "$*" >&2; exit 1; }

# logged NAME COMMAND...: output goes to a log; the log's tail is shown when the command fails
logged() {
  local log=$logs/$1.log; shift
  "$@" > "$log" 2>&1 < /dev/null || {
    local status=$?
    printf -- '--- the last lines of %s\n' "$log" >&2; tail -n 30 "$log" >&2
    die "$* (exit status $status)"
  }
}

# alone NAME: one process at a time from here to the end of the script
alone() {
  exec 9> "$BELAY_CACHE/$1.lock"
  flock -n 9 || { say "waiting for another run ($BELAY_CACHE/$1.lock)"; flock 9; }
}

# Bit 24 of the bounding set: many containers and sandboxes lack it
has_sys_resource() { (( 0x$(awk '/^CapBnd/{print $2}' /proc/self/status) >> 24 & 1 )); }

# Where Docker is: the caller's DOCKER_HOST, else our own daemon if it runs, else the machine's
docker_answers() { DOCKER_HOST=$1 timeout 10 docker info > /dev/null 2>&1; }
choose_docker() {
  # ours, from an environment of `cluster.sh env`: it may have to be started again
  if [ "${DOCKER_HOST:-}" = "$own_docker" ]; then unset DOCKER_HOST; fi
  [ -z "${DOCKER_HOST:-}" ] || return 0
  if docker_answers "$own_docker"; then export DOCKER_HOST=$own_docker; fi
}
