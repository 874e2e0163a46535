#!/bin/bash
# cluster.sh up | down | status | load ARCHIVE... | env
# A kind cluster named $BELAY_CLUSTER (default belay): one control plane and two workers.  What it needs is built and
# cached under $BELAY_CACHE at first use.
#   up      make sure that it runs; a running one is left as it is
#   load    put image archives (make images) on its nodes; what they hold already is skipped
#   env     print the environment for kubectl, helm and tests:  eval "$(tests/cluster/cluster.sh env)"
# BELAY_NODE_IMAGE  a node image to use instead of the pulled or built one
# DOCKER_HOST       a Docker daemon to use
set -euo pipefail
. "$(dirname "$0")/env.sh"
export KUBECONFIG=$BELAY_KUBECONFIG
nodes=3

nodes_ready() {
  [ -f "$KUBECONFIG" ] &&
    [ "$(timeout 10 kubectl get nodes --no-headers --request-timeout=5s 2> /dev/null | grep -c ' Ready ')" = $nodes ]
}

# The models of the checkout, for the nodes.  A copy, since clusters outlive checkouts; files are replaced, never
# rewritten, since a running worker has them mapped.
copy_models() {
  local from=$checkout/tests/fixtures/models file to
  while IFS= read -r -d '' file; do
    to=$BELAY_MODELS/${file#"$from"/}
    cmp -s "$file" "$to" && continue
    mkdir -p "$(dirname "$to")"
    cp "$file" "$to.new" && mv "$to.new" "$to"
  done < <(find "$from" -type f -print0)
  chmod -R a+rX "$BELAY_MODELS"
}

kind_config() {
  local mounts="  extraMounts: [{hostPath: '$BELAY_MODELS', containerPath: /belay/models, readOnly: true}]"
  cat << C
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
$mounts
- role: worker
$mounts
- role: worker
$mounts
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  failCgroupV1: false          # kubelet 1.35 and later stop on cgroup v1 by default
  nodeLeaseDurationSeconds: 8  # renewed every 2 s; with the two below a lost node is noticed in 8 s, not in 50 s
kubeadmConfigPatchesJSON6902:
- group: kubeadm.k8s.io
  version: v1beta4
  kind: ClusterConfiguration
  patch: |
    - op: add
      path: /controllerManager/extraArgs/-
      value: {name: node-monitor-grace-period, value: 8s}
    - op: add
      path: /controllerManager/extraArgs/-
      value: {name: node-monitor-period, value: 1s}
C
}

# kindest/node needs cgroup v2 (its systemd) and CAP_SYS_RESOURCE (its containerd); ours runs without.
choose_node_image() {
  if [ -n "${BELAY_NODE_IMAGE:-}" ]; then echo "$BELAY_NODE_IMAGE"; return; fi
  if "$scripts/node-image.sh" --if-built; then return; fi
  if [ -f /sys/fs/cgroup/cgroup.controllers ] && has_sys_resource; then
    say "pulling ${PULLED_NODE_IMAGE%@*}"
    if docker image inspect "$PULLED_NODE_IMAGE" > /dev/null 2>&1 ||
      timeout 600 docker pull -q "$PULLED_NODE_IMAGE" > "$logs/docker-pull.log" 2>&1 < /dev/null; then
      echo "$PULLED_NODE_IMAGE"; return
    fi
    say "it can't be pulled ($(tail -n 1 "$logs/docker-pull.log")): building a node image"
  else
    say "kindest/node needs cgroup v2 and CAP_SYS_RESOURCE, which this machine lacks: building a node image"
  fi
  "$scripts/node-image.sh"
}

# Each node takes about 20 inotify instances; when they run out, the third cluster's API server just ends.
raise_inotify() {
  local setting=/proc/sys/fs/inotify/max_user_instances
  if [ "$(cat $setting)" -lt 1024 ] && [ -w $setting ] && echo 1024 2> /dev/null > $setting; then
    say "fs.inotify.max_user_instances is 1024 now"
  fi
}

create() {
  logged kind-create kind create cluster --name "$BELAY_CLUSTER" --image "$1" --config "$cluster_home/kind.yaml" \
    --kubeconfig "$KUBECONFIG" --wait 3m
}

up() {
  alone "cluster-$BELAY_CLUSTER"
  mkdir -p "$BELAY_MODELS"
  copy_models
  choose_docker
  if nodes_ready; then
    say "cluster $BELAY_CLUSTER runs"
    return
  fi
  "$scripts/install-tools.sh"
  "$scripts/docker.sh" start
  choose_docker
  "$scripts/programs.sh" base
  local image
  image=$(choose_node_image)
  # one that does not answer (stopped with its daemon, half made) comes back faster made anew
  if kind get clusters 2> /dev/null | grep -qx "$BELAY_CLUSTER"; then
    say "cluster $BELAY_CLUSTER does not answer: making it anew"
    logged kind-delete kind delete cluster --name "$BELAY_CLUSTER"
  fi
  say "creating cluster $BELAY_CLUSTER with $image"
  kind_config > "$cluster_home/kind.yaml"
  raise_inotify
  # kubeadm's waits are short for a machine that is busy compiling: one more try
  (create "$image") || { say "once more"; create "$image"; }
  logged kind-wait kubectl wait --for=condition=Ready node --all --timeout=120s
  ln -sfn "$BELAY_BIN" "$BELAY_CACHE/bin"
  say "cluster $BELAY_CLUSTER runs: export KUBECONFIG=$KUBECONFIG PATH=$BELAY_CACHE/bin:\$PATH"
}

down() {
  alone "cluster-$BELAY_CLUSTER"
  choose_docker
  if [ -x "$BELAY_BIN/kind" ] && kind get clusters 2> /dev/null | grep -qx "$BELAY_CLUSTER"; then
    say "deleting cluster $BELAY_CLUSTER"
    logged kind-delete kind delete cluster --name "$BELAY_CLUSTER" --kubeconfig "$KUBECONFIG"
  fi
  rm -rf "$cluster_home"
}

status() {
  choose_docker
  echo "cache      $BELAY_CACHE"
  echo "docker     ${DOCKER_HOST:-default}"
  echo "kubeconfig $KUBECONFIG"
  kubectl get nodes -o wide
}

load() {
  choose_docker
  local archive name digest node absent
  for archive in "$@"; do
    read -r name digest < <(tar -xOf "$archive" index.json |
      jq -r '.manifests[0] | .annotations["io.containerd.image.name"] + " " + .digest')
    absent=()
    for node in $(kind get nodes --name "$BELAY_CLUSTER"); do
      docker exec "$node" ctr -n k8s.io images ls "name==$name" < /dev/null 2> /dev/null | grep -q "$digest" || absent+=("$node")
    done
    if [ ${#absent[@]} = 0 ]; then continue; fi
    say "loading $name to ${absent[*]}"
    logged kind-load kind load image-archive "$archive" --name "$BELAY_CLUSTER" --nodes "$(IFS=,; echo "${absent[*]}")"
  done
}

print_env() {
  choose_docker
  [ -z "${DOCKER_HOST:-}" ] || printf 'export DOCKER_HOST=%q\n' "$DOCKER_HOST"
  printf 'export BELAY_CACHE=%q BELAY_BIN=%q BELAY_CLUSTER=%q BELAY_MODELS=%q KUBECONFIG=%q\nexport PATH=%q:$PATH\n' \
    "$BELAY_CACHE" "$BELAY_BIN" "$BELAY_CLUSTER" "$BELAY_MODELS" "$KUBECONFIG" "$BELAY_BIN"
}

command=${1:-}
shift || true
case $command in
up | down | status) "$command" ;;
load) load "$@" ;;
env) print_env ;;
*) die "usage: cluster.sh up | down | status | load ARCHIVE... | env" ;;
esac
