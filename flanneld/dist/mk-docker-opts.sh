#!/bin/sh
# Turns the daemon's subnet.env into options for dockerd, in a file that a unit can name as its EnvironmentFile.
# The file is read, never run: a value that is not of its kind ends this with a sentence.
set -eu

usage() {
  cat >&2 <<END
usage: $0 [-f FILE] [-d FILE] [-i] [-c] [-k KEY] [-m]
  -f FILE   the daemon's file (/run/flannel/subnet.env)
  -d FILE   the file to write (/run/docker_opts.env)
  -i        write each option as DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
  -c        write all options as one variable; without -i and -c both forms are written
  -k KEY    the name of that one variable (DOCKER_OPTS)
  -m        say nothing of masquerading
END
  exit 1
}

die() { echo "$0: $*" >&2; exit 1; }

# The value of a key, empty when the file or the key is missing; the last one counts.
value() { if [ -f "$from" ]; then sed -n "s/^$1=//p" "$from" | tail -n 1; fi; }

option() {  # option NAME TEXT
  all="$all $2"
  [ -z "$single" ] || echo "DOCKER_OPT_$1=\"$2\""
}

from=/run/flannel/subnet.env to=/run/docker_opts.env single='' combined='' key=DOCKER_OPTS masq=1 all=''
while getopts f:d:ick:m letter; do
  case $letter in
    f) from=$OPTARG ;;
    d) to=$OPTARG ;;
    i) single=1 ;;
    c) combined=1 ;;
    k) key=$OPTARG ;;
    m) masq='' ;;
    *) usage ;;
  esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || usage
[ -n "$single$combined" ] || single=1 combined=1
case $key in '' | [0-9]* | *[!A-Za-z0-9_]*) die "-k $key: not the name of a variable" ;; esac

subnet=$(value FLANNEL_SUBNET) mtu=$(value FLANNEL_MTU) masquerades=''
[ -z "$masq" ] || masquerades=$(value FLANNEL_IPMASQ)
case $subnet in *[!0-9./]*) die "$from: FLANNEL_SUBNET=$subnet is not an IPv4 subnet" ;; esac
case $mtu in *[!0-9]*) die "$from: FLANNEL_MTU=$mtu is not a number" ;; esac
case $masquerades in
  true) docker_masquerades=false ;;   # one of the two must, and both would rewrite twice
  false) docker_masquerades=true ;;
  '') docker_masquerades='' ;;
  *) die "$from: FLANNEL_IPMASQ=$masquerades is neither true nor false" ;;
esac

# The environment's own value of the combined variable goes first. The key was checked above.
eval "all=\${$key:-}"
{
  [ -z "$subnet" ] || option BIP "--bip=$subnet"
  [ -z "$docker_masquerades" ] || option IPMASQ "--ip-masq=$docker_masquerades"
  [ -z "$mtu" ] || option MTU "--mtu=$mtu"
  [ -z "$combined" ] || echo "$key=\"$all\""
} >"$to"

# A subnet that is already reached through another host cannot be docker's bridge.
if [ -n "$subnet" ]; then
  address=${subnet%/*}
  network=${address%.*}.$((${address##*.} - 1))/${subnet#*/}
  case $(ip -4 route show exact "$network" 2>/dev/null) in
    *' via '*) die "$network is already routed through another host" ;;
  esac
fi
