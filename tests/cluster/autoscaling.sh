#!/bin/bash
# autoscaling.sh up | down: KEDA, metrics-server and Prometheus, built from their sources, on the cluster $BELAY_CLUSTER
set -euo pipefail
. "$(dirname "$0")/env.sh"
export KUBECONFIG=$BELAY_KUBECONFIG CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target}
parts=(metrics-server keda prometheus)

rendered=$cluster_home/autoscaling

# with the versions of today, and KEDA's definitions as its module has them
render() {
  local part module
  mkdir -p "$rendered"
  for part in "${parts[@]}"; do
    sed -e "s/@KEDA_VERSION@/$KEDA_VERSION/; s/@METRICS_SERVER_VERSION@/$METRICS_SERVER_VERSION/" \
      -e "s/@PROMETHEUS_VERSION@/$PROMETHEUS_VERSION/" "$scripts/autoscaling/$part.yaml" > "$rendered/$part.yaml"
  done
  module=$(cd "$BELAY_CACHE/src/keda-$KEDA_VERSION" && go mod download -json "github.com/kedacore/keda/v2@$KEDA_VERSION" | jq -er .Dir)
  kubectl kustomize "$module/config/crd" > "$rendered/definitions.yaml"
}

# image PROGRAM VERSION: its archive is made anew when the program is newer
archives=()
image() {
  local archive=$BELAY_CACHE/images/$1-$2.tar
  if [ ! "$archive" -nt "$node_bin/$1" ]; then
    "$CARGO_TARGET_DIR/release/belay-images" write --compression none --name "docker.io/local/$1:$2" --out "$archive" \
      --binary "$node_bin/$1" --entrypoint "/$1" --user 65532 > /dev/null
  fi
  archives+=("$archive")
}

up() {
  "$scripts/programs.sh" autoscaling
  (cd "$checkout" && logged belay-images cargo build --release --locked -p belay-images)
  image metrics-server "$METRICS_SERVER_VERSION"
  image keda-operator "$KEDA_VERSION"
  image keda-adapter "$KEDA_VERSION"
  image prometheus "$PROMETHEUS_VERSION"
  "$scripts/cluster.sh" load "${archives[@]}"
  render
  local part
  # too long for the annotation of a client-side apply
  logged apply-definitions kubectl apply --server-side --force-conflicts -f "$rendered/definitions.yaml"
  for part in "${parts[@]}"; do logged "apply-$part" kubectl apply -f "$rendered/$part.yaml"; done
  # KEDA's certificates reach the files of its pods only when the kubelet looks at their Secret again: a minute or two
  logged rollout-metrics-server kubectl -n kube-system rollout status deployment/metrics-server --timeout=180s
  logged rollout-keda-operator kubectl -n keda rollout status deployment/keda-operator --timeout=300s
  logged rollout-keda-adapter kubectl -n keda rollout status deployment/keda-metrics-apiserver --timeout=300s
  logged rollout-prometheus kubectl -n monitoring rollout status deployment/prometheus --timeout=180s
  logged wait-apis kubectl wait --for=condition=Available --timeout=180s \
    apiservice/v1beta1.metrics.k8s.io apiservice/v1beta1.external.metrics.k8s.io
  say "metrics-server $METRICS_SERVER_VERSION, KEDA $KEDA_VERSION and Prometheus $PROMETHEUS_VERSION run on $BELAY_CLUSTER"
}

down() {
  local part
  render
  # an API whose server is gone holds up the deletion of every namespace
  kubectl delete --ignore-not-found apiservice v1beta1.metrics.k8s.io v1beta1.external.metrics.k8s.io
  for part in "${parts[@]}"; do kubectl delete --ignore-not-found -f "$rendered/$part.yaml"; done
  kubectl delete --ignore-not-found -f "$rendered/definitions.yaml"
}

choose_docker
case ${1:-} in
up | down) "$1" ;;
*) die "usage: autoscaling.sh up | down" ;;
esac
