#!/bin/bash
# prepare.sh FILE: a cluster for the tests, with images and models, and the environment they need written to FILE:
#   KUBECONFIG, DOCKER_HOST (if any)   the cluster and the daemon that runs its nodes
#   BELAY_BIN                          folder with kubectl, helm, kind, grpcurl
#   BELAY_CLUSTER                      name of the kind cluster
#   BELAY_MODELS                       folder of this machine that every node has read-only at /belay/models
#   BELAY_WORKER                       the belay-worker of the image, to run on this machine
#   BELAY_NPU                          folder with a belay-worker that can load CANN, and the simulator's library
#   BELAY_PYTHON                       a Python with tests/e2e/clients/requirements.txt
# The cluster is made anew, so that nothing an earlier run left decides anything; BELAY_KEEP_CLUSTER=1 keeps it.
set -euo pipefail
. "$(dirname "$0")/env.sh"
cd "$checkout"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target}
[ "$BELAY_CLUSTER" != belay ] || die "belay is the cluster of the demo: name another one in BELAY_CLUSTER"

"$scripts/install-tools.sh"
images/build.sh
"$scripts/npu-image.sh"
[ -n "${BELAY_KEEP_CLUSTER:-}" ] || "$scripts/cluster.sh" down
"$scripts/cluster.sh" up
"$scripts/cluster.sh" load out/images/belay-*.tar out/images/test-worker-npu.tar
eval "$("$scripts/cluster.sh" env)"
# the example's namespace is its first document: some tests come before the example is applied
awk '/^---/{exit} {print}' examples/nano.yaml | kubectl apply -f -

python=$("$scripts/python.sh")
{
  "$scripts/cluster.sh" env
  printf 'export BELAY_PYTHON=%q BELAY_NPU=%q BELAY_WORKER=%q\n' "$python" "$CARGO_TARGET_DIR/npu-image" \
    "$CARGO_TARGET_DIR/$(uname -m)-unknown-linux-musl/release/belay-worker"
} > "$1"
