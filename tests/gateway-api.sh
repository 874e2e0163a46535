#!/bin/bash
# gateway-api.sh: the chart's HTTPRoute and those of examples/gateway-api, as an API server with the Gateway API's own
# definitions takes them (nothing serves them here)
set -euo pipefail
. "$(dirname "$0")/cluster/env.sh"
cd "$checkout"
"$scripts/programs.sh" base
"$scripts/programs.sh" apiserver
module=$(go mod download -json "sigs.k8s.io/gateway-api@$GATEWAY_API_VERSION") ||
  die "sigs.k8s.io/gateway-api@$GATEWAY_API_VERSION can't be downloaded"
definitions=$(jq -er .Dir <<< "$module")/config/crd/standard

work=$(mktemp -d)
children=()
end() {
  # at once: nothing of it is kept
  [ ${#children[@]} = 0 ] || kill -KILL "${children[@]}" 2> /dev/null || true
  wait
  rm -rf "$work"
}
trap end EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
etcd=http://127.0.0.1:$(free_port)
peer=http://127.0.0.1:$(free_port)
port=$(free_port)
"$node_bin/etcd" --data-dir "$work/etcd" --unsafe-no-fsync --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
  --listen-peer-urls "$peer" > "$work/etcd.log" 2>&1 &
children+=($!)
openssl genrsa -out "$work/sa.key" 2048 2> /dev/null
echo 'admin-token,admin,admin,system:masters' > "$work/users.csv"
"$node_bin/kube-apiserver" --etcd-servers "$etcd" --bind-address 127.0.0.1 --secure-port "$port" --cert-dir "$work/certs" \
  --service-account-key-file "$work/sa.key" --service-account-signing-key-file "$work/sa.key" \
  --service-account-issuer https://kubernetes.default.svc --token-auth-file "$work/users.csv" \
  --authorization-mode RBAC --service-cluster-ip-range 10.96.0.0/16 > "$work/apiserver.log" 2>&1 &
children+=($!)
api() {
  kubectl --kubeconfig /dev/null --server "https://127.0.0.1:$port" --token admin-token \
    --certificate-authority "$work/certs/apiserver.crt" "$@"
}
until curl --silent --fail --cacert "$work/certs/apiserver.crt" --header 'authorization: Bearer admin-token' \
  "https://127.0.0.1:$port/readyz" > /dev/null; do
  [ "$SECONDS" -lt 300 ] || { tail -n 10 "$work"/*.log | cut -c 1-200 >&2; die "kube-apiserver does not get ready"; }
  sleep 0.5
done
api create namespace belay-system > /dev/null
api apply --server-side --filename "$definitions" > /dev/null
api wait --for condition=Established --timeout 60s crd/httproutes.gateway.networking.k8s.io > /dev/null

taken() { api apply --server-side --dry-run=server --validate=strict --namespace belay-system --filename -; }
route() {
  helm template belay charts/belay --namespace belay-system --show-only templates/gateway-httproute.yaml \
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
understood=$(api create --dry-run=server --namespace belay-system --filename "$work/full.yaml" --output json)
jq -e '.spec.rules | length == 3 and .[0].filters[0].requestHeaderModifier.set[0].value == "canary"
  and .[1].matches[0].headers[0].type == "RegularExpression" and (.[2] | has("filters") | not)
  and all(.[]; .backendRefs[0].name == "belay-gateway" and .timeouts.request == "0s")' <<< "$understood" > /dev/null ||
  die "the API server understood something else: $understood"
# and nonsense is refused, or all of this would say nothing
if route --set-json 'gateway.httpRoute.timeouts={"request": "soon"}' | taken > "$work/refused" 2>&1; then
  die "a route with a nonsensical time limit is taken"
fi
grep -q 'timeouts.request' "$work/refused" || die "refused for another reason: $(cat "$work/refused")"
