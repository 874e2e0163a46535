#!/bin/bash
# The whole path: a cluster, the chart, a model whose experts are spread over two pods, questions over HTTP and gRPC.
#   DEMO_KUBECONFIG=file  use a cluster that exists, in the place of a kind cluster of our own
#   DEMO_REGISTRY=name    with it: the registry folder its images were pushed to (not needed for a kind cluster)
set -euo pipefail
. "$(dirname "$0")/../tests/cluster/env.sh"
cd "$checkout"
begin=$SECONDS
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target}
system=belay-system
models=models
manifest=examples/nano.yaml
registry=ghcr.io/belay-dev

# --- 1. a cluster ---------------------------------------------------------------------------------------------------
tests/cluster/install-tools.sh
images/build.sh
if [ -n "${DEMO_KUBECONFIG:-}" ]; then
  tests/cluster/programs.sh base
  export KUBECONFIG=$DEMO_KUBECONFIG
  choose_docker
  # its nodes need not have the model: it comes as an image volume
  manifest=examples/nano-image.yaml
  context=$(kubectl config current-context)
  if kind get clusters 2> /dev/null | grep -qx "${context#kind-}"; then
    BELAY_CLUSTER=${context#kind-} tests/cluster/cluster.sh load out/images/*.tar
  elif [ -n "${DEMO_REGISTRY:-}" ]; then
    registry=$DEMO_REGISTRY
  else
    die "cluster $context is not a kind cluster of this machine: push the images of out/images (docker load, docker tag,
  docker push) to a registry that its nodes pull from, then give its name in DEMO_REGISTRY"
  fi
else
  tests/cluster/cluster.sh up
  tests/cluster/cluster.sh load out/images/belay-*.tar
  eval "$(tests/cluster/cluster.sh env)"
fi

# --- 2. the chart -----------------------------------------------------------------------------------------------------
digest() { tar -xOf "out/images/$1.tar" index.json | jq -r '.manifests[0].digest'; }
say "helm upgrade --install belay charts/belay"
# the tag stays the same from build to build: the digest makes a new build a new pod
logged helm helm upgrade --install belay charts/belay --namespace $system --create-namespace --wait --timeout 3m \
  --set "image.registry=$registry" \
  --set-string "operator.podAnnotations.belay\.dev/image=$(digest belay-operator)" \
  --set-string "gateway.podAnnotations.belay\.dev/image=$(digest belay-gateway)"

# --- 3. the model -----------------------------------------------------------------------------------------------------
say "kubectl apply -f $manifest"
sed "s#ghcr.io/belay-dev/#$registry/#" "$manifest" | kubectl apply -f -
# The tag of the image stays from build to build, and so would the workers of an earlier build.  Kubernetes names an
# imported image by the digest of its index.
if [ -z "${DEMO_REGISTRY:-}" ]; then
  built=$(tar -xOf out/images/belay-worker.tar index.json | sha256sum | cut -d' ' -f1)
  mapfile -t stale < <(kubectl --namespace $models get pods --selector serving.belay.dev/model-deployment=nano -o json |
    jq -r --arg built "$built" '.items[] | select(.status.containerStatuses[0].imageID // "" | . != "" and (contains($built) | not)) | .metadata.name')
  if [ ${#stale[@]} -gt 0 ]; then
    say "workers of another build run: their pods are made anew"
    kubectl --namespace $models delete pods "${stale[@]}"
  fi
fi
progress() {
  kubectl --namespace $models get modeldeployments.serving.belay.dev nano -o json | jq -r '
    (.status // {}) as $s
    | [ ($s.groups // [] | map("\(.name): \(.readyWorkers // 0) workers ready"
          + (if .loading.bytesTotal then ", \(.loading.bytesDone // 0 | . / 1048576 | floor) of \(.loading.bytesTotal / 1048576 | floor) MiB loaded" else "" end)
          + (if .message then ", \(.message)" else "" end))[]),
        ($s.conditions // [] | map("\(.type)=\(.status) \(.reason)"
          + (if .message != "" and (.status == "True" or .type == "Degraded") then ": \(.message)" else "" end))[]) ]
    | .[]'
}
settled() {
  kubectl --namespace $models get modeldeployments.serving.belay.dev nano -o json |
    jq -e '.status.observedGeneration == .metadata.generation and .status.readyReplicas == .spec.replicas
      and .status.updatedReplicas == .spec.replicas' > /dev/null
}
seen=''
deadline=$((SECONDS + 300))
until settled; do
  now=$(progress)
  # only what is new
  diff <(printf '%s\n' "$seen") <(printf '%s\n' "$now") | sed -n 's/^> \(..*\)/    \1/p' || true
  seen=$now
  if [ $SECONDS -gt $deadline ]; then
    kubectl --namespace $models describe modeldeployments.serving.belay.dev nano | tail -n 40
    kubectl --namespace $models get pods -o wide
    kubectl --namespace $system logs --tail=30 --selector app.kubernetes.io/component=operator
    die "the model is not ready after 5 minutes"
  fi
  sleep 0.5
done
kubectl --namespace $models get modeldeployments.serving.belay.dev
kubectl --namespace $models get pods -o wide

# --- 4. questions -----------------------------------------------------------------------------------------------------
opened=$logs/demo-port-forward.log
kubectl --namespace $system port-forward service/belay-gateway :80 > "$opened" 2>&1 &
forward=$!
trap 'kill $forward 2> /dev/null || true' EXIT
for _ in $(seq 100); do
  address=$(sed -n 's/^Forwarding from \(127.0.0.1:[0-9]*\) .*/\1/p' "$opened")
  [ -z "$address" ] || break
  sleep 0.1
done
[ -n "$address" ] || die "kubectl port-forward: $(cat "$opened")"

# Questions with the answers of the reference implementation, from the model's held-out set
evaluation=tests/fixtures/models/nano/eval.jsonl
case_of() { jq -c --arg id "$1" 'select(.id == $id)' $evaluation; }
wrong=0
judge() { # ID ANSWER
  if [ "$2" = "$(case_of "$1" | jq -r .greedy_text)" ]; then
    printf '\n    \033[32m(the same as the reference implementation)\033[0m\n'
  else
    printf '\n    \033[31m(the reference says: %s)\033[0m\n' "$(case_of "$1" | jq -r .greedy_text)"
    wrong=$((wrong + 1))
  fi
}
question() { printf '\n\033[1m%s\033[0m  [%s]\n' "$(case_of "$1" | jq -r '.messages[-1].content')" "$2"; }
answer=$logs/demo-answer

for id in fact-42 doc-60 code-131; do
  question $id "HTTP: POST /v1/chat/completions, stream"
  case_of $id | jq '{model: "nano", stream: true, temperature: 0, max_tokens: 128, messages}' |
    curl -sSN --max-time 120 "http://$address/v1/chat/completions" -H 'content-type: application/json' -d @- |
    sed -u -n 's/^data: {/{/p; t; /^{/p' |
    jq --unbuffered -rj 'if .error then "error: " + .error.message else .choices[0].delta.content // empty end' | tee "$answer"
  judge $id "$(cat "$answer")"
done

id=fact-10
question $id "gRPC: belay.inference.v1.Inference/Chat, by reflection"
case_of $id | jq '{model: "nano", sampling: {temperature: 0, max_tokens: 128}, messages}' |
  grpcurl -plaintext -max-time 120 -d @ "$address" belay.inference.v1.Inference/Chat |
  jq --unbuffered -rj '.text // empty' | tee "$answer"
judge $id "$(cat "$answer")"

# --- 5. what next -------------------------------------------------------------------------------------------------------
[ $wrong = 0 ] || die "$wrong answers differ from the reference"
cat << T

It took $((SECONDS - begin)) s.  To go on:

  export KUBECONFIG=$KUBECONFIG PATH=$BELAY_BIN:\$PATH
  kubectl --namespace $models get mdep nano --watch
  kubectl --namespace $models scale mdep nano --replicas=2
  kubectl --namespace $models delete pod --wait=false --selector serving.belay.dev/worker=1   # it comes back
  kubectl explain modeldeployments.serving.belay.dev.spec
  kubectl --namespace $system port-forward service/belay-gateway 8080:80
  curl http://127.0.0.1:8080/v1/models

To clean up:

  kubectl delete -f $manifest && helm --namespace $system uninstall belay
T
[ -n "${DEMO_KUBECONFIG:-}" ] || echo "  make cluster-down"
