#!/bin/sh
# enter.sh TREE [--beside] COMMAND… — run a command in a tree, with /proc, a small /dev and empty /run and /tmp of its own.
# --beside: the command stays outside; a package manager of the host, whose packages' scripts find the same as a hook.
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
# The services of packages must not start. systemctl sees that it is in a chroot; invoke-rc.d, which only systems with dpkg
# have, asks its policy layer (101 is "forbidden").
if [ -d "$root/var/lib/dpkg" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$root/run/policy-rc.d"
    chmod 755 "$root/run/policy-rc.d"
    : >>"$root/usr/sbin/policy-rc.d"
    mount --bind "$root/run/policy-rc.d" "$root/usr/sbin/policy-rc.d"
fi
export HOME=/root
if [ "$1" = --beside ]; then
    shift
    exec "$@"
fi
exec chroot "$root" "$@"
