#!/bin/bash
# run.sh PART...: lint, unit, cluster, chaos, report, autoscaling, scale.  Every part runs, whatever happened to the ones before; the last line counts.
set -uo pipefail
. "$(dirname "$0")/cluster/env.sh"
cd "$checkout"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target} CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}
# an error says what was done to whom; where in the runtime it was made only buries that
export RUST_LIB_BACKTRACE=0
if [ -n "${CI:-}" ]; then
  # a clone in another folder each time: incremental state is never used again, and old builds of our crates only pile up
  export CARGO_INCREMENTAL=0
  find "$CARGO_TARGET_DIR" -maxdepth 4 \( -name 'belay*' -o -name 'libbelay*' \) -mtime +3 -exec rm -rf {} + 2> /dev/null
fi
# the cluster of the demo is not ours to delete
if [ "$BELAY_CLUSTER" = belay ]; then BELAY_CLUSTER=belay-test; fi
# three times what the cluster tests take: one that stands still is named by the last line of the log
cluster_limit=45m
passed=0
failed=0
failures=()
begin=$SECONDS

# check NAME COMMAND...: passes or fails as a whole
check() {
  local name=$1 start=$SECONDS; shift
  say "$name"
  if "$@" < /dev/null; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    failures+=("$name")
  fi
  say "$name: $((SECONDS - start)) s"
}

# failed_tests PART LOG: the names that cargo lists at the end of each binary, each with the first line of its complaint
failed_tests() {
  awk -v part="$1" '
    /^failures:$/ {listed = 1; next}
    /^test result: / {listed = 0}
    listed && /^    [^ ]+$/ {print part ": " $1 (($1 in why) ? ": " why[$1] : "")}
    match($0, /^test [^ ]+ \.\.\./) {name = $2}
    /^---- [^ ]+ stdout ----$/ {name = $2}
    panicked && !(name in why) {why[name] = $0}
    {panicked = /^thread .* panicked at /}
    /(^|\.\.\. )Error: / && !(name in why) {sub(/.*Error: /, ""); why[name] = $0}
  ' "$2" | sort -u
}

# counted NAME COMMAND...: a `cargo test`, counted test by test
counted() {
  local name=$1 start=$SECONDS log=$logs/$1.log status ok bad; shift
  say "$name"
  "$@" < /dev/null 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  read -r ok bad < <(awk '/^test result: /{ok += $4; bad += $6} END {print ok + 0, bad + 0}' "$log")
  # a binary that did not compile, or was killed, has no result line
  if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; failures+=("$name: exit status $status"); fi
  if [ "$status" = 0 ] && [ "$ok" = 0 ]; then bad=1; failures+=("$name: no test ran"); fi
  mapfile -t -O "${#failures[@]}" failures < <(failed_tests "$name" "$log")
  passed=$((passed + ok))
  failed=$((failed + bad))
  say "$name: $ok passed, $bad failed, $((SECONDS - start)) s"
}

chart() {
  "$scripts/programs.sh" base || return
  helm lint --quiet --strict charts/belay || return
  helm template belay charts/belay > /dev/null || return
  helm template belay charts/belay --set watchNamespace=models,networkPolicy.enabled=true > /dev/null || return
  # the dashboard in the ConfigMap is the file, to the byte, and there is none unless it is asked for
  dashboard() { helm template belay charts/belay "$@" --show-only templates/dashboards.yaml 2> /dev/null; }
  dashboard --set dashboards.enabled=true | sed -n '/^  belay.json: |$/,$p' | sed '1d; s/^    //; /^$/d' \
    | cmp - charts/belay/files/dashboards/belay.json || return
  if dashboard > /dev/null; then
    echo "a dashboard that nobody asked for"
    return 1
  fi
  if helm template belay charts/belay --set gateway.replicas=many > /dev/null 2>&1; then
    echo "a value of a wrong kind is accepted"
    return 1
  fi
}

shells() {
  local script
  for script in .ci/run examples/*.sh images/*.sh tests/*.sh tests/bench/*.sh tests/cluster/*.sh tests/cluster/runc-wrap; do
    bash -n "$script" || return
  done
}

lint() {
  check "lint: cargo fmt" cargo fmt --all --check
  check "lint: clippy" cargo clippy --quiet --locked --workspace --all-targets --features belay-e2e/cluster,belay-operator/scale -- -D warnings
  check "lint: chart" chart
  check "lint: shell scripts" shells
  if command -v cargo-deny > /dev/null; then
    check "lint: cargo deny" cargo-deny --log-level error --locked check bans licenses sources
  else
    say "lint: cargo deny is skipped (make deny installs it)"
  fi
}

unit() {
  # the operator is also tried against a real API server, without nodes
  check "unit: etcd and kube-apiserver" tests/cluster/programs.sh apiserver
  export BELAY_KUBERNETES_BIN=$node_bin
  counted unit cargo test --quiet --locked --workspace --no-fail-fast
}

# prepare PART: a cluster for it, and the environment that it needs in $environment, if that went well
prepare() {
  alone "tests-$BELAY_CLUSTER"
  environment=$logs/test-environment
  rm -f "$environment"
  check "$1: prepare" tests/cluster/prepare.sh "$environment"
}

cluster() {
  local environment
  prepare cluster
  if [ -f "$environment" ]; then
    # shellcheck disable=SC2016 # expanded by the inner shell
    check "cluster: Gateway API" bash -c '. "$0" && exec "$@"' "$environment" tests/gateway-api.sh
    # shellcheck disable=SC2016 # expanded by the inner shell
    counted cluster bash -c '. "$0" && exec "$@"' "$environment" \
      timeout --verbose "$cluster_limit" \
      cargo test --locked -p belay-e2e --features cluster --test cluster -- --test-threads=1 --nocapture
  fi
  if [ -n "${CI:-}" ]; then # nothing of ours outlives a CI run
    tests/cluster/cluster.sh down
    tests/cluster/docker.sh stop
  fi
}

# The long campaign: no part of `make test`.  It goes on where an earlier one was cut off; what it takes is in
# tests/e2e/tests/chaos/main.rs.
chaos() {
  local environment
  prepare chaos
  if [ -f "$environment" ]; then
    # shellcheck disable=SC2016 # expanded by the inner shell
    check "chaos: trials" bash -c '. "$0" && exec "$@"' "$environment" \
      cargo test --locked -p belay-e2e --features cluster --test chaos
  fi
}

# Changes under load, for docs/reliability.md: no part of `make test` either.
report() {
  local environment
  prepare report
  if [ -f "$environment" ]; then
    # shellcheck disable=SC2016 # expanded by the inner shell
    check "report: changes" bash -c '. "$0" && exec "$@"' "$environment" \
      cargo test --locked -p belay-e2e --features cluster --test report
  fi
}

# Autoscalers of our own and of others against load, for docs/operations/autoscaling.md: no part of `make test` either.
autoscaling() {
  local environment
  prepare autoscaling
  [ -f "$environment" ] || return
  check "autoscaling: KEDA, metrics-server and Prometheus" tests/cluster/autoscaling.sh up
  # shellcheck disable=SC2016 # expanded by the inner shell
  check "autoscaling: scenarios" bash -c '. "$0" && exec "$@"' "$environment" \
    cargo test --locked -p belay-e2e --features cluster --test autoscaling
}

# The operator with many deployments: no part of `make test`.  What it takes is in operator/tests/scale.rs.
scale() {
  check "scale: a control plane and kwok" tests/cluster/programs.sh scale
  export BELAY_KUBERNETES_BIN=$node_bin
  # as it is shipped
  local target
  target=$(uname -m)-unknown-linux-musl
  tests/cluster/install-tools.sh || return
  check "scale: the operator" cargo build --quiet --release --locked --target "$target" -p belay-operator
  export BELAY_OPERATOR=${BELAY_OPERATOR:-$CARGO_TARGET_DIR/$target/release/belay-operator}
  # a connection to each worker, at both ends, and a port for each
  ulimit -n "$(ulimit -Hn)"
  check "scale: measure" cargo test --release --locked -p belay-operator --features scale --test scale
}

[ $# -gt 0 ] || die "usage: run.sh lint | unit | cluster | chaos | report | autoscaling | scale ..."
tests/cluster/install-tools.sh build || exit 1
for part in "$@"; do
  case $part in
  lint | unit | cluster | chaos | report | autoscaling | scale) "$part" ;;
  *) die "no part is called $part" ;;
  esac
done
for failure in "${failures[@]+"${failures[@]}"}"; do printf '  \033[31mfailed\033[0m %s\n' "$failure"; done
say "$(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
