# shellcheck shell=sh disable=SC2034,SC2154 # its variables come from init or go there
# Fetches artefacts by their digest. Reads: server, the plan_* variables.

# room ROOT OTHERS: places for the root and for what else is fetched (bytes); a fifth of the memory is left for the rest.
room() {
    available_kib=0
    while read -r key value _; do
        [ "$key" != MemAvailable: ] || available_kib=$value
    done </proc/meminfo
    mib=$((($1 + $2) / 1048576 + 1))
    [ "$mib" -lt $((available_kib * 4 / 5120)) ] ||
        fail fetch no-space "This version needs $mib MiB of memory, this PC has $((available_kib / 1024)) MiB free."
    mount -o "remount,size=$(($2 / 1048576 + 1 + available_kib / 5120))m" /run
    # The root has a place of its own, for huge pages: it is one file that is written once (a kernel without them takes small ones).
    mkdir /run/fleet/share
    size=$(($1 / 1048576 + 4))m
    mount -t tmpfs -o "mode=0700,size=$size,huge=always" share /run/fleet/share 2>/dev/null ||
        mount -t tmpfs -o "mode=0700,size=$size" share /run/fleet/share ||
        fail fetch other "The kernel gives no memory for the root."
}

# fetch WHAT DIGEST BYTES FILE: the artefact is in FILE and is what the plan says, or this PC does not boot it.
fetch() {
    for round in 1 2; do
        download "$1" "$server/store/$2" "$3" "$4"
        digest=$(sha256sum <"$4")
        [ "${digest%% *}" != "$2" ] || return 0
        rm "$4"
        say "The $1 that came is not the one of the boot plan (sha256 ${digest%% *}), round $round of 2."
    done
    fail verify digest-mismatch "The $1 of $plan_version is damaged on its way or on the server: sha256 is ${digest%% *}, not $2."
}

# root: the share is at /dev/dm-0 (the first mapped device of this PC), which gives out no block whose hash is not the plan's. With check=whole all of
# them are read before anything is mounted; otherwise /fleet/scrub does that when the PC has booted.
root() {
    [ "$plan_fetch" = http ] || {
        share
        return
    }
    for round in 1 2; do
        download root "$server/store/$plan_root" "$plan_root_bytes" /run/fleet/share/root.squashfs
        losetup -r /dev/loop0 /run/fleet/share/root.squashfs || fail root other "There is no loop device."
        dmsetup --noudevsync --noudevrules create root --readonly --table "$(table /dev/loop0 "1 check_at_most_once")" \
            >/run/fleet/answer 2>&1 || fail root mount "The root's hash tree could not be set up: $(cat /run/fleet/answer)"
        # The first block is the squashfs's own: it is read here so that a wrong root is named, not a mount that fails.
        [ "$plan_check" = whole ] && count='' || count=count=1
        # shellcheck disable=SC2086 # nothing, or one word
        ! dd if=/dev/dm-0 of=/dev/null bs=1M $count 2>/run/fleet/answer || return 0
        intact && fail root other "The root cannot be read: $(cat /run/fleet/answer)"
        dmsetup --noudevsync --noudevrules remove root
        losetup -d /dev/loop0
        rm /run/fleet/share/root.squashfs
        say "The root that came is not the one of the boot plan (a block has another hash), round $round of 2."
    done
    damaged
}

damaged() {
    fail verify digest-mismatch "The root of $plan_version is damaged on its way or on the server: a block has another hash."
}

# intact: no block with another hash was met yet (device-mapper's own word for it: V or C, valid or corrupt).
intact() {
    case $(dmsetup status root) in *C) return 1 ;; esac
}

# download WHAT URL BYTES FILE: resumes what was broken off; gives up after six tries that brought nothing.
download() {
    tries=0
    size=0
    while :; do
        transfer "$2" "$4"
        before=$size
        size=$(stat -c %s "$4" 2>/dev/null) || size=0
        [ "$size" -lt "$3" ] || return 0
        [ "$size" -eq "$before" ] || tries=0
        tries=$((tries + 1))
        if [ "$tries" -gt 6 ]; then
            [ "$size" -eq 0 ] || fail fetch short "The $1 has $3 bytes, the server gave $size."
            fail fetch unreachable "The $1 could not be fetched from $server."
        fi
        read -r answer </run/fleet/answer || answer="broken off"
        say "The $1: $size of $3 bytes (${answer#wget: }); going on, try $tries of 6."
        pause "$tries"
    done
}

# transfer URL FILE: one connection. Debian's wget applet has no time limit: a watch ends one that stands still.
transfer() {
    wget -q -c -O "$2" "$1" 2>/run/fleet/answer &
    transfer=$!
    (
        trap 'kill "$nap"; exit' TERM
        size=-1
        while :; do
            sleep 15 &
            nap=$!
            wait "$nap"
            now=$(stat -c %s "$2" 2>/dev/null) || now=0
            [ "$now" != "$size" ] || kill "$transfer"
            size=$now
        done
    ) &
    watcher=$!
    wait "$transfer"
    kill "$watcher"
    wait "$watcher" 2>/dev/null
}
