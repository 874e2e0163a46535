#!/bin/busybox sh
# The pod network of the nodes that we build: one of these per node, in the place of kind's kindnetd.
# It writes this node's CNI configuration, a route to the pods of every other node, and masquerades what leaves
# the pod network.  IPv4 only, no network policies.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
conf=/etc/cni/net.d/10-podnet.conflist
range='{range .items[*]}{.spec.podCIDR} {.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}'
while :; do
  kubectl get nodes -o jsonpath="$range" > /nodes || echo "cannot list nodes"
  while read -r cidr address; do
    [ -n "$address" ] || continue # the node has no pod range yet
    if [ "$address" != "$HOST_IP" ]; then
      ip route replace "$cidr" via "$address"
    elif [ ! -f $conf ]; then
      cat > /etc/cni/net.d/.new << C && mv /etc/cni/net.d/.new $conf && echo "this node has $cidr"
{"cniVersion": "0.4.0", "name": "podnet", "plugins": [
 {"type": "ptp", "ipMasq": false, "mtu": $(cat /sys/class/net/eth0/mtu),
  "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state",
   "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$cidr"}]]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
C
    fi
  done < /nodes
  iptables -t nat -C POSTROUTING -s "$POD_SUBNET" ! -d "$POD_SUBNET" -j MASQUERADE 2> /dev/null ||
    iptables -t nat -A POSTROUTING -s "$POD_SUBNET" ! -d "$POD_SUBNET" -j MASQUERADE
  sleep 2
done
