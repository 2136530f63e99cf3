# A kubelet that finds the kernel's settings as it wants them, so that it alters nothing of the machine's.
# $1: kubelet, $2: folder with the configuration of the node, $3: name of its cgroups, then: more flags
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$2/$(echo "${setting%%=*}" | tr / -)
  echo "${setting#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${setting%%=*}"
done
mkdir -p /run/manifests
# Nodes share the machine's cgroups: each has one of its own below them, and takes none of another node's for an orphan.
for hierarchy in /sys/fs/cgroup/*/; do mkdir -p "$hierarchy$3"; done
kubelet=$1 folder=$2 cgroup=$3
shift 3
exec "$kubelet" --config "$folder/kubelet.yaml" --cgroup-root "/$cgroup" --root-dir /var/lib/kubelet "$@"
