#!/bin/sh
# enter.sh TREE COMMAND… — run a command in a tree, with /proc, a small /dev and empty /run and /tmp of its own.
# To be run in a mount and PID namespace (unshare --mount --pid --fork), with which all of it goes away.
set -eu
root=$1
shift
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
HOME=/root exec chroot "$root" "$@"
