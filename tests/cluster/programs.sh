#!/bin/bash
# programs.sh base | node | apiserver | scale | autoscaling | deny: build Kubernetes' programs from Go modules, each kept
# by version.
#   base: kind, kubectl, helm and grpcurl        node: what the node image needs besides
#   apiserver: etcd, kube-apiserver and kube-controller-manager, which the operator's tests start by themselves
#   scale: a scheduler and kwok besides, for `make scale`
#   autoscaling: KEDA, metrics-server and Prometheus, for `make e2e-autoscaling` (KEDA alone is 3,300 packages)
#   deny: cargo-deny, for `make lint` (from crates.io)
set -euo pipefail
. "$(dirname "$0")/env.sh"
alone programs
links=$BELAY_BIN
case ${1:-} in node | apiserver | scale | autoscaling) links=$node_bin ;; esac
export CGO_ENABLED=0 GOFLAGS="-mod=mod -trimpath -buildvcs=false" GOWORK=off

# built NAME VERSION PROGRAM...: whether the cache has them all; links them into the folder of this set
built() {
  local at=$BELAY_CACHE/programs/$1-$2; shift 2
  local program
  for program in "$@"; do [ -x "$at/$program" ] || return 1; done
  for program in "$@"; do ln -sfn "$at/$program" "$links/$program"; done
}

# build NAME VERSION MODULE PACKAGE...: a module that is a plain dependency.  A program is named by the last part
# of its package, or by what stands before '=' .
build() {
  local name=$1 version=$2 module=$3; shift 3
  local programs=() package program
  for package in "$@"; do
    program=${package%%=*}; programs+=("${program##*/}")
  done
  built "$name" "$version" "${programs[@]}" && return
  say "building $name $version"
  local src=$BELAY_CACHE/src/$name-$version at=$BELAY_CACHE/programs/$name-$version
  mkdir -p "$src" "$at"; cd "$src"
  [ -f go.mod ] || printf 'module build\n\ngo 1.26.0\n' > go.mod
  logged "get-$name" go get "$module@$version"
  for package in "$@"; do
    program=${package%%=*}
    logged "build-$name" go build -ldflags '-s -w' -o "$at/${program##*/}.partial" "${package#*=}"
    mv "$at/${program##*/}.partial" "$at/${program##*/}"
  done
  built "$name" "$version" "${programs[@]}"
}

# replaces NAME VERSION MODULE: before `build`, where the module replaces others, which counts only in a main module
replaces() {
  local src=$BELAY_CACHE/src/$1-$2 mod arguments
  [ ! -f "$src/go.mod" ] || return 0
  mod=$(go mod download -json "$3@$2" | jq -er .GoMod) || die "$3@$2 can't be downloaded"
  mapfile -t arguments < <(go mod edit -json "$mod" | jq -r '.Replace[]? | select(.New.Version) |
    "-replace=\(.Old.Path)\(if .Old.Version then "@" + .Old.Version else "" end)=\(.New.Path)@\(.New.Version)"')
  mkdir -p "$src"
  printf 'module build\n\ngo 1.26.0\n' > "$src/go.mod.new"
  [ ${#arguments[@]} = 0 ] || go mod edit "${arguments[@]}" "$src/go.mod.new"
  mv "$src/go.mod.new" "$src/go.mod"
}

# k8s.io/kubernetes requires its staging modules at v0.0.0: each is replaced by its own release.
kubernetes() { # PROGRAM...
  built kubernetes "$KUBERNETES_VERSION" "$@" && return
  local src=$BELAY_CACHE/src/kubernetes-$KUBERNETES_VERSION at=$BELAY_CACHE/programs/kubernetes-$KUBERNETES_VERSION
  mkdir -p "$src" "$at"; cd "$src"
  local mod module program
  mod=$(go mod download -json "k8s.io/kubernetes@$KUBERNETES_VERSION" | jq -er .GoMod) || die "k8s.io/kubernetes@$KUBERNETES_VERSION can't be downloaded"
  {
    printf 'module build\n\ngo %s\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' "$(awk '/^go /{print $2}' "$mod")" "$KUBERNETES_VERSION"
    # v0.0.0 to the end of the word: k8s.io/utils and kube-openapi have v0.0.0-DATE and stay
    grep -oE 'k8s\.io/[a-z0-9-]+ v0\.0\.0( |$)' "$mod" | sort -u | while read -r module _; do
      printf '  %s => %s v0.%s\n' "$module" "$module" "${KUBERNETES_VERSION#v1.}"
    done
    echo ')'
  } > go.mod
  local v=k8s.io/component-base/version
  local stamp="-X $v.gitVersion=$KUBERNETES_VERSION -X $v.gitMajor=1 -X $v.gitMinor=$(cut -d. -f2 <<< "$KUBERNETES_VERSION") -X $v.gitTreeState=clean"
  for program in "$@"; do # one at a time: linking several at once takes several GB
    [ -x "$at/$program" ] && continue
    say "building $program $KUBERNETES_VERSION (from nothing: some minutes each)"
    logged "build-$program" go build -ldflags "-s -w $stamp" -o "$at/$program.partial" "k8s.io/kubernetes/cmd/$program"
    mv "$at/$program.partial" "$at/$program"
  done
  built kubernetes "$KUBERNETES_VERSION" "$@"
}

# pause is a small C program; its source comes with the kubernetes module
pause() {
  built pause "$PAUSE_VERSION" pause && return
  say "building pause $PAUSE_VERSION"
  local at=$BELAY_CACHE/programs/pause-$PAUSE_VERSION dir
  mkdir -p "$at"
  dir=$(go mod download -json "k8s.io/kubernetes@$KUBERNETES_VERSION" | jq -er .Dir)
  logged build-pause gcc -Os -static -DVERSION="$PAUSE_VERSION" -o "$at/pause" "$dir/build/pause/linux/pause.c"
  built pause "$PAUSE_VERSION" pause
}

case ${1:-} in
base)
  build kind "$KIND_VERSION" sigs.k8s.io/kind sigs.k8s.io/kind
  build helm "$HELM_VERSION" helm.sh/helm/v4 helm.sh/helm/v4/cmd/helm
  build grpcurl "$GRPCURL_VERSION" github.com/fullstorydev/grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl
  kubernetes kubectl
  ;;
node)
  plugins=github.com/containernetworking/plugins/plugins
  build cni "$CNI_VERSION" github.com/containernetworking/plugins \
    $plugins/main/ptp $plugins/main/loopback $plugins/ipam/host-local $plugins/meta/portmap
  containerd=github.com/containerd/containerd/v2
  build containerd "$CONTAINERD_VERSION" $containerd \
    $containerd/cmd/containerd $containerd/cmd/containerd-shim-runc-v2 $containerd/cmd/ctr
  build crictl "$CRICTL_VERSION" sigs.k8s.io/cri-tools sigs.k8s.io/cri-tools/cmd/crictl
  build etcd "$ETCD_VERSION" go.etcd.io/etcd/server/v3 etcd=go.etcd.io/etcd/server/v3
  build coredns "$COREDNS_VERSION" github.com/coredns/coredns github.com/coredns/coredns
  kubernetes kubeadm kubelet kubectl kube-apiserver kube-controller-manager kube-scheduler kube-proxy
  pause
  ;;
apiserver)
  build etcd "$ETCD_VERSION" go.etcd.io/etcd/server/v3 etcd=go.etcd.io/etcd/server/v3
  kubernetes kube-apiserver kube-controller-manager
  ;;
scale)
  build etcd "$ETCD_VERSION" go.etcd.io/etcd/server/v3 etcd=go.etcd.io/etcd/server/v3
  build kwok "$KWOK_VERSION" sigs.k8s.io/kwok sigs.k8s.io/kwok/cmd/kwok
  kubernetes kube-apiserver kube-controller-manager kube-scheduler
  ;;
autoscaling)
  build metrics-server "$METRICS_SERVER_VERSION" sigs.k8s.io/metrics-server sigs.k8s.io/metrics-server/cmd/metrics-server
  keda=github.com/kedacore/keda/v2
  replaces keda "$KEDA_VERSION" $keda
  build keda "$KEDA_VERSION" $keda keda-operator=$keda/cmd/operator keda-adapter=$keda/cmd/adapter
  # pods and services are all that it has to find; the web pages are not in the module
  GOFLAGS="$GOFLAGS -tags=remove_all_sd,enable_kubernetes_sd" build prometheus "$PROMETHEUS_VERSION" \
    github.com/prometheus/prometheus github.com/prometheus/prometheus/cmd/prometheus
  ;;
deny)
  at=$BELAY_CACHE/programs/cargo-deny-$CARGO_DENY_VERSION
  if [ ! -x "$at/bin/cargo-deny" ]; then
    say "building cargo-deny $CARGO_DENY_VERSION (some minutes)"
    CARGO_TARGET_DIR=$BELAY_CACHE/src/cargo-deny logged cargo-deny nice cargo install --quiet --locked --root "$at" "cargo-deny@$CARGO_DENY_VERSION"
    rm -rf "$BELAY_CACHE/src/cargo-deny"
  fi
  ln -sfn "$at/bin/cargo-deny" "$BELAY_BIN/cargo-deny"
  ;;
*) die "usage: programs.sh base | node | apiserver | scale | autoscaling | deny" ;;
esac
