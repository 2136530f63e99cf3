# PID 1 of a node: the host's files, but cgroups, /etc and /opt of its own. It reaps nobody's children.
# $1: folder of the plugins, $2: folder of the plugins that stand in for those it lacks, $3: folder with the configuration of the node
set -e
mount --make-rprivate /
mount -t tmpfs cgroups /sys/fs/cgroup
while read -r _ at type options _; do
  mkdir -p "$at"
  case $type in
    cgroup2) mount -t cgroup2 none "$at" ;;
    cgroup)
      names=$(echo "$options" | tr , '\n' | grep -vE '^(rw|ro|relatime|nosuid|nodev|noexec|release_agent=.*)$' | paste -sd,)
      mount -t cgroup -o "$names" none "$at" ;;
  esac
done < "$3/cgroups"
mkdir -p "$3/etc" "$3/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$3/etc,workdir=$3/work" overlay /etc
mount -t tmpfs opt /opt
mount -t tmpfs log /var/log
mkdir -p /opt/cni/bin /etc/cni/net.d
if [ -e "$3/network.conflist" ]; then
  for plugin in flannel bridge host-local loopback portmap bandwidth firewall tuning; do
    if [ -e "$1/$plugin" ]; then ln -s "$1/$plugin" /opt/cni/bin/; else ln -s "$2/$plugin" /opt/cni/bin/; fi
  done
  cp "$3/network.conflist" /etc/cni/net.d/10-network.conflist
else
  mount -t tmpfs net.d /etc/cni/net.d
fi
mount --make-rshared /
touch "$3/ready"
exec sleep infinity
