#!/bin/sh
# enter.sh NETWORK TREE COMMAND… — run a command in a tree, with /proc, a small /dev and empty /run and /tmp of its own.
# To be run in namespaces of its own (enter.py), with which all of it goes away. NETWORK: not empty when there is one.
set -eu
network=$1 root=$2
shift 2
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev" # no disks in it: a hook cannot reach the host's
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for node in null zero full random urandom tty; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
# The services of packages that a hook installs must not start (invoke-rc.d's policy layer: 101 is "forbidden").
printf '#!/bin/sh\nexit 101\n' >"$root/run/policy-rc.d"
chmod 755 "$root/run/policy-rc.d"
: >>"$root/usr/sbin/policy-rc.d"
mount --bind "$root/run/policy-rc.d" "$root/usr/sbin/policy-rc.d"
if [ -n "$network" ] && [ -e "$root/etc/resolv.conf" ]; then # the image's own is empty
    cat /etc/resolv.conf >"$root/run/resolv.conf"
    mount --bind "$root/run/resolv.conf" "$root/etc/resolv.conf"
else
    ip link set lo up 2>/dev/null || true
fi
unset TMPDIR # the host's
HOME=/root exec chroot "$root" "$@"
