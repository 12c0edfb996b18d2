# shellcheck shell=sh disable=SC2034,SC2154 # its variables come from init or go there
# A root that stays on the server's NFS share: its blocks are read when they are needed. Reads: the plan_* variables, ip.

# table DEVICE [OPTIONS]: what device-mapper is to know of the root on DEVICE: its hash tree lies behind it.
table() {
    echo "0 $((plan_root_blocks * 8)) verity 1 $1 $1 4096 4096 $plan_root_blocks $plan_root_blocks blake2b-512 $plan_root_hash - $2"
}

# check_share: how the root is fetched; these values become mount options and paths. Sets root_memory (bytes).
check_share() {
    root_memory=$plan_root_bytes
    case ${plan_fetch:=http} in
        http) return ;;
        nfs) root_memory=0 ;;
        lazy) ;;
        *) fail plan other "The boot plan fetches the root by $plan_fetch, which this initrd cannot do." ;;
    esac
    share_path=/${plan_share#nfs://*/}
    share_host=${plan_share#nfs://}
    share_host=${share_host%%/*}
    share_port=${share_host#*:}
    share_host=${share_host%:*}
    case $plan_share in nfs://*:*/*/*) ;; *) bad_plan share ;; esac
    case $share_host in '' | *[!0-9.]*) bad_plan share ;; esac
    case $share_port in '' | *[!0-9]*) bad_plan share ;; esac
}

# share: /dev/dm-0 is the root on the share. Unlike in memory, a block may be another one when it is read again (the page cache
# forgets, the network lies): it is checked each time.
share() {
    /fleet/modprobe nfsv4 2>/dev/null || fail root other "This kernel has no NFS client: the class has to fetch its root by http."
    mkdir /run/fleet/nfs
    tries=0
    # Mounted hard: while the server is away readers wait. Only this first contact has a limit.
    until timeout 20 mount -t nfs -o "ro,nodev,nosuid,vers=4.1,proto=tcp,port=$share_port,addr=$share_host,clientaddr=$(own_address)" \
        "$share_host:${share_path%/*}" /run/fleet/nfs 2>/run/fleet/answer; do
        tries=$((tries + 1))
        read -r answer </run/fleet/answer || answer="no answer"
        [ "$tries" -le 6 ] || fail fetch unreachable "The share $plan_share cannot be mounted (${answer#mount: })."
        say "The share at $share_host cannot be mounted (${answer#mount: }); try $tries of 6."
        pause "$tries"
    done
    file=/run/fleet/nfs/${share_path##*/}
    size=$(stat -c %s "$file" 2>/dev/null) || fail fetch short "The share has no root of $plan_version (${share_path##*/})."
    [ "$size" = "$plan_root_bytes" ] || fail fetch short "The root has $plan_root_bytes bytes, the share gives $size."
    # The kernel would ask a program of the root whose names these are, and that program waits for the root.
    [ "$(stat -c %u "$file")" != 4294967294 ] ||
        fail root mount "The share names the owners of files: its server has to send numbers (docs/deploy.md)."
    losetup -r /dev/loop0 "$file" || fail root other "There is no loop device."
    dmsetup --noudevsync --noudevrules create root --readonly --table "$(table /dev/loop0)" >/run/fleet/answer 2>&1 ||
        fail root mount "The root's hash tree could not be set up: $(cat /run/fleet/answer)"
    dd if=/dev/dm-0 of=/dev/null bs=4096 count=1 2>/run/fleet/answer || damaged
}

own_address() {
    while IFS='=' read -r key value; do
        [ "$key" != address ] || echo "$value"
    done </run/fleet/network
}

# keep_share: what /fleet/watch.sh needs when the initrd is gone, all of it in memory.
keep_share() {
    mkdir /run/fleet/lib
    find / -xdev -name '*.so*' -type f -exec cp {} /run/fleet/lib/ \;
    cp /bin/dmsetup /fleet/watch.sh /run/fleet/bin/
    printf 'share=%s\nfile=%s\ncopy=/run/fleet/share/root.squashfs\ntable="%s"\nonce="%s"\n' \
        "$share_host" "$file" "$(table LOOP)" "$(table LOOP "1 check_at_most_once")" >>/run/fleet/scrub
}
