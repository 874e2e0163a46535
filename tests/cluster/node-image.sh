#!/bin/bash
# Make the node image of kind without an image registry: a Debian root, kind's own base files from its Go module, the
# programs of programs.sh, and the control plane's images already in containerd's store.  Prints the image's name.
# With --if-built: only if it is there already.
set -euo pipefail
. "$(dirname "$0")/env.sh"
choose_docker
inputs=$({
  echo "$KUBERNETES_VERSION $ETCD_VERSION $COREDNS_VERSION $PAUSE_VERSION $KIND_VERSION $CONTAINERD_VERSION $CNI_VERSION $CRICTL_VERSION"
  cat "$scripts/node-image.sh" "$scripts"/node/*
} | sha256sum | cut -c1-8)
image=local/kind-node:$KUBERNETES_VERSION-$inputs
if docker image inspect "$image" > /dev/null 2>&1; then echo "$image"; exit; fi
[ "${1:-}" != --if-built ] || exit 1

[ "$(id -u)" = 0 ] || die "only root can make a node image (debootstrap); or give a ready one in BELAY_NODE_IMAGE"
alone node-image
"$scripts/programs.sh" base
"$scripts/programs.sh" node
home=$BELAY_CACHE/node
root=$home/root
mkdir -p "$home"
PATH=$PATH:/usr/sbin:/sbin

# --- the tool that writes images ---------------------------------------------------------------------------------
say "building belay-images"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$BELAY_CACHE/target}
(cd "$checkout" && logged belay-images cargo build --release --locked -p belay-images)

# --- 1. Debian root.  12 because its systemd (252) still runs on cgroup v1 -----------------------------------------
debian=$home/debian-12.tar
if [ ! -f "$debian" ]; then
  say "making a Debian 12 root with debootstrap (about two minutes)"
  rm -rf "$home/debian"
  logged debootstrap debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,libseccomp2,pigz,e2fsprogs,bash,ca-certificates,curl,jq,procps,runc,busybox-static \
    bookworm "$home/debian" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
  rm -rf "$home"/debian/var/{cache/apt,cache/debconf,lib/apt/lists,log}/* "$home"/debian/usr/share/{doc,man,info,locale}/*
  tar -C "$home/debian" -cf "$debian.partial" .
  mv "$debian.partial" "$debian"
  rm -rf "$home/debian"
fi
say "assembling the node image"
rm -rf "$root"
mkdir -p "$root"
tar -C "$root" -xf "$debian"

# --- 2. what the Dockerfile of kind's base image does, without its network -----------------------------------------
kind_module=$(cd "$BELAY_CACHE/src/kind-$KIND_VERSION" && go mod download -json "sigs.k8s.io/kind@$KIND_VERSION" | jq -er .Dir)
base=$kind_module/images/base/files
cp -r --no-preserve=mode "$base"/{etc,kind,usr} "$root/"
chmod 755 "$root"/usr/local/bin/* "$root/kind" "$root"/kind/bin "$root"/kind/bin/*
rm -f "$root"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service \
  "$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* "$root"/etc/systemd/system/*.wants/* \
  "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}*
echo 'ReadKMsg=no' >> "$root/etc/systemd/journald.conf"
logged units chroot "$root" systemctl enable kubelet containerd undo-mount-hacks
logged units chroot "$root" systemctl mask systemd-binfmt
mkdir -p "$root/etc/kubernetes/manifests" "$root/opt/cni/bin" "$root/kind/manifests"
put() { local folder=$1 program; shift; for program in "$@"; do cp -L "$node_bin/$program" "$root$folder/$program"; done; }
put /usr/local/bin containerd containerd-shim-runc-v2 ctr crictl
put /opt/cni/bin ptp loopback host-local portmap
put /usr/bin kubeadm kubelet kubectl
"$node_bin/ctr" oci spec 2> /dev/null |
  jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    > "$root/etc/containerd/cri-base.json"
# A host without CAP_SYS_RESOURCE allows no negative oom_score_adj: every sandbox would die at its start.
# And the pause image is the one that kubeadm of this version asks for.
sed -i -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' \
  -e "s#registry.k8s.io/pause:[0-9.]*#registry.k8s.io/pause:$PAUSE_VERSION#" "$root/etc/containerd/config.toml"

# --- 3. what `kind build node-image` does.  No default-storage.yaml: kind falls back to a host-path StorageClass ---
printf %s "$KUBERNETES_VERSION" > "$root/kind/version"
cp "$scripts/node/default-cni.yaml" "$root/kind/manifests/default-cni.yaml"

# --- 4. the images.  kube-proxy and the pod network need iptables with every library of its plugins: a missing one
#        breaks services with several endpoints, and nothing in `kubectl get pods` shows it -------------------------
netfilter=$home/netfilter
rm -rf "$netfilter"
mkdir -p "$netfilter"/{run,tmp,etc,usr/{bin,sbin,lib,lib64}}
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$netfilter/$folder"; done
take() { local path; for path in "$@"; do mkdir -p "$netfilter$(dirname "$path")"; cp -Ln "$root$path" "$netfilter$path"; done; }
plugins=$(cd "$root" && printf '/%s\n' usr/lib/x86_64-linux-gnu/xtables/*.so)
libraries=$(chroot "$root" bash -c 'ldd /usr/sbin/{xtables-nft-multi,nft,conntrack} /usr/lib/x86_64-linux-gnu/xtables/*.so' |
  grep -oE '/lib[^ :]+ \(' | cut -d' ' -f1 | sort -u)
# shellcheck disable=SC2086 # one path a word
take /usr/sbin/xtables-nft-multi /usr/sbin/nft /usr/sbin/conntrack /bin/busybox $plugins $libraries
for family in '' 6; do
  for verb in '' -save -restore; do ln -sf xtables-nft-multi "$netfilter/usr/sbin/ip${family}tables$verb"; done
done
chroot "$netfilter" /bin/busybox --install -s /bin

images=$home/images
rm -rf "$images"
mkdir -p "$images"
make_image() { # NAME ARGUMENT...: kept as a plain tar, since it is read once, here
  local name=$1 file; shift
  file=$(tr '/:' '__' <<< "$name").tar
  "$CARGO_TARGET_DIR/release/belay-images" write --compression none --name "$name" --out "$images/$file" "$@" > /dev/null
}
for program in kube-apiserver kube-controller-manager kube-scheduler; do
  make_image "registry.k8s.io/$program:$KUBERNETES_VERSION" --add "$node_bin/$program=/usr/local/bin/$program"
done
make_image "registry.k8s.io/kube-proxy:$KUBERNETES_VERSION" --add "$netfilter=/" --add "$node_bin/kube-proxy=/usr/local/bin/kube-proxy"
make_image "registry.k8s.io/etcd:${ETCD_VERSION#v}-0" --add "$node_bin/etcd=/usr/local/bin/etcd"
make_image "registry.k8s.io/coredns/coredns:$COREDNS_VERSION" --binary "$node_bin/coredns" --entrypoint /coredns
make_image "registry.k8s.io/pause:$PAUSE_VERSION" --binary "$node_bin/pause" --entrypoint /pause --user 65535
chmod 755 "$scripts/node/podnet.sh"
make_image docker.io/local/podnet:2 --add "$netfilter=/" --binary "$scripts/node/podnet.sh" --entrypoint /podnet.sh

# --- 5. into the store of the root: content only, each node unpacks at its start -----------------------------------
socket=$home/import.sock
printf 'version = 3\nroot = "%s"\nstate = "%s"\n[grpc]\naddress = "%s"\n' \
  "$root/var/lib/containerd" "$home/import" "$socket" > "$home/import.toml"
"$node_bin/containerd" -c "$home/import.toml" > "$logs/import.log" 2>&1 9>&- &
importer=$!
trap 'kill $importer 2> /dev/null || true' EXIT
ctr() { "$node_bin/ctr" -a "$socket" -n k8s.io "$@"; }
for _ in $(seq 80); do ctr version > /dev/null 2>&1 && break; sleep 0.25; done
for archive in "$images"/*.tar; do
  logged "import-$(basename "$archive" .tar)" ctr images import --label=io.cri-containerd.pinned=pinned --no-unpack --digests "$archive"
done
kill $importer
wait $importer || true
trap - EXIT
rm -rf "$home/import" "$socket"*

# --- 6. one layer, then the metadata (`docker import -c` knows no STOPSIGNAL, and without SIGRTMIN+3 systemd in the
#        node does not shut down) ---------------------------------------------------------------------------------
say "handing the node image to Docker"
plain=local/kind-root:$inputs
tar -C "$root" -c . | docker import - "$plain" > "$logs/docker-import.log"
DOCKER_BUILDKIT=0 docker build -q -t "$image" - > "$logs/docker-build.log" 2>&1 << D || { cat "$logs/docker-build.log" >&2; die "docker build"; }
FROM $plain
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
D
docker rmi "$plain" > /dev/null
# a gigabyte each: older ones go, unless a container uses them (Docker refuses then)
docker images --format '{{.Repository}}:{{.Tag}}' local/kind-node | grep -vxF "$image" | xargs -r docker rmi > /dev/null 2>&1 || true
rm -rf "$root" "$images" "$netfilter"
echo "$image"
