# shellcheck shell=sh disable=SC2154 # /run/fleet/scrub gives the variables
# Looks after a root that is read from the share; part of scrub, and as that needs nothing of the root itself.
#
# fetch=nfs: the root stays there, so all of it is not read (that would cost what the share saves); damage is found where it is met.
# fetch=lazy: the whole root is copied to memory and checked there, then the mapped device is turned to the copy.

loader=$(echo /run/fleet/lib/ld-*)

dm() {
    "$loader" --library-path /run/fleet/lib /run/fleet/bin/dmsetup --noudevsync --noudevrules "$@"
}

# intact: no block with another hash was met yet (V or C, valid or corrupt).
intact() {
    case $(dm status root) in *C) return 1 ;; esac
}

# attend: 1 when the root is damaged. A share that does not answer is named once, and once more when it is back.
attend() {
    intact || return
    if $box timeout 10 "$box" stat -f "$file" >/dev/null 2>&1; then
        [ "$away" != yes ] || echo "<1>fleet: The share at $share answers again." >/dev/kmsg
        away=no
    elif [ "$away" != yes ]; then
        away=yes
        echo "<1>fleet: The share at $share does not answer: this PC waits for it." >/dev/kmsg
        tell fetch unreachable "The share at $share does not answer, the PC waits for it."
    fi
}

# look_after: returns 1 as soon as the root is known to be damaged, 0 when there is nothing left to look after.
look_after() {
    if [ "$fetch" = lazy ]; then
        bring && turn
    else
        while attend; do $box sleep 10; done
        return 1
    fi
}

# bring: the whole root is in memory, each block checked; 1 when what the share has is damaged.
bring() {
    for _ in 1 2; do
        $box rm -f /run/fleet/copied
        # Directly: through the page cache it would take that much memory once more.
        {
            $box dd if="$file" of="$copy" bs=1M iflag=direct 2>/dev/null
            echo $? >/run/fleet/copied
        } &
        until [ -e /run/fleet/copied ]; do
            $box sleep 2
            attend || return
        done
        loop=$($box losetup -f)
        $box losetup -r "$loop" "$copy"
        dm create copy --readonly --table "$(on "$loop" "$table")"
        $box dd if="/dev/dm-$(dm info -c --noheadings -o minor copy)" of=/dev/null bs=1M iflag=direct 2>/dev/null
        whole=$?
        dm remove copy
        [ $whole -ne 0 ] || return 0
        $box losetup -d "$loop"
    done
    return 1
}

# turn: from now on the root is in memory. Nobody sees it but who reads in this very moment, and he waits.
turn() {
    dm load root --readonly --table "$(on "$loop" "$once")"
    dm suspend --nolockfs root
    dm resume root
    $box losetup -d /dev/loop0
    $box umount -l /run/fleet/nfs
    : >/run/fleet/kept
    echo "<5>fleet: All of the root is in memory: this PC no longer needs the share." >/dev/kmsg
}

# on DEVICE TABLE: the table for that device.
on() {
    echo "$2" | $box sed "s,LOOP,$1,g"
}
