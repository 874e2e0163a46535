#!/bin/bash
# gateway-api.sh: the chart's HTTPRoute and those of examples/gateway-api, as the API server of $KUBECONFIG takes them with
# the Gateway API's own definitions (nothing serves them there)
set -euo pipefail
. "$(dirname "$0")/cluster/env.sh"
cd "$checkout"
module=$(go mod download -json "sigs.k8s.io/gateway-api@$GATEWAY_API_VERSION") ||
  die "sigs.k8s.io/gateway-api@$GATEWAY_API_VERSION can't be downloaded"
definitions=$(jq -er .Dir <<< "$module")/config/crd/standard

work=$(mktemp -d)
namespace=gateway-api-$$
end() {
  kubectl delete --ignore-not-found --wait=false namespace "$namespace" > /dev/null
  kubectl delete --ignore-not-found --filename "$definitions" > /dev/null
  rm -rf "$work"
}
trap end EXIT
kubectl create namespace "$namespace" > /dev/null
kubectl apply --server-side --filename "$definitions" > /dev/null
kubectl wait --for condition=Established --timeout 60s crd/httproutes.gateway.networking.k8s.io > /dev/null

# in a namespace of its own, whatever the example says
taken() {
  sed "s/^  namespace: belay-system$/  namespace: $namespace/" |
    kubectl apply --server-side --dry-run=server --validate=strict --namespace "$namespace" --filename -
}
route() {
  helm template belay charts/belay --namespace "$namespace" --show-only templates/gateway-httproute.yaml \
    --set gateway.httpRoute.enabled=true --set 'gateway.httpRoute.parentRefs[0].name=public' "$@"
}
revisions='[{"revision": "canary", "headers": [{"name": "x-tester", "value": "yes"}]},
  {"revision": "preview", "headers": [{"name": "x-tester", "value": "^p", "type": "RegularExpression"}]}]'
route | taken
route --set-json 'gateway.httpRoute.timeouts=null' | taken
route --set 'gateway.httpRoute.hostnames={models.example.com}' --set-json "gateway.httpRoute.revisions=$revisions" > "$work/full.yaml"
taken < "$work/full.yaml"
for example in examples/gateway-api/*.yaml; do taken < "$example"; done

# what the values say is what the API server understood: two rules by header and the one for the rest
understood=$(kubectl create --dry-run=server --namespace "$namespace" --filename "$work/full.yaml" --output json)
jq -e '.spec.rules | length == 3 and .[0].filters[0].requestHeaderModifier.set[0].value == "canary"
  and .[1].matches[0].headers[0].type == "RegularExpression" and (.[2] | has("filters") | not)
  and all(.[]; .backendRefs[0].name == "belay-gateway" and .timeouts.request == "0s")' <<< "$understood" > /dev/null ||
  die "the API server understood something else: $understood"
# and nonsense is refused, or all of this would say nothing
if route --set-json 'gateway.httpRoute.timeouts={"request": "soon"}' | taken > "$work/refused" 2>&1; then
  die "a route with a nonsensical time limit is taken"
fi
grep -q 'timeouts.request' "$work/refused" || die "refused for another reason: $(cat "$work/refused")"
