# shellcheck shell=sh disable=SC2034,SC2154 # its variables come from init or go there
# The driver layers of this client: squashfs files that lie over the share, each with its change of the root plan.

# layers: they are mounted at /run/fleet/layers/1 and so on, for mount-share; their plans are for unpack.
layers() {
    number=0
    for layer in $plan_layers; do
        number=$((number + 1))
        # shellcheck disable=SC2046 # six words
        layer "$number" $(echo "$layer" | tr , ' ')
    done
}

# layer N ROOT BYTES HASH BLOCKS PLAN BYTES: all of it is read before it is mounted, so nobody has to look at it later.
layer() {
    fetch "root plan of layer $1" "$6" "$7" "/run/fleet/root.cpio.$1"
    for round in 1 2; do
        download "layer $1" "$server/store/$2" "$3" "/run/fleet/layer-$1.squashfs"
        loop=$(losetup -f)
        losetup -r "$loop" "/run/fleet/layer-$1.squashfs" || fail root other "There is no loop device."
        dmsetup --noudevsync --noudevrules create "layer-$1" --readonly --table "0 $(($5 * 8)) verity 1 \
$loop $loop 4096 4096 $5 $5 blake2b-512 $4 - 1 check_at_most_once" >/run/fleet/answer 2>&1 ||
            fail root mount "The hash tree of layer $1 could not be set up: $(cat /run/fleet/answer)"
        device=$(mapped "layer-$1")
        if dd if="$device" of=/dev/null bs=1M 2>/run/fleet/answer; then
            mkdir -p "/run/fleet/layers/$1"
            mount -t squashfs -o ro,nodev "$device" "/run/fleet/layers/$1" 2>/run/fleet/answer ||
                fail root mount "Layer $1 of $plan_version could not be mounted: $(cat /run/fleet/answer)"
            return
        fi
        case $(dmsetup status "layer-$1") in *C) ;; *) fail root other "Layer $1 cannot be read: $(cat /run/fleet/answer)" ;; esac
        dmsetup --noudevsync --noudevrules remove "layer-$1"
        losetup -d "$loop"
        rm "/run/fleet/layer-$1.squashfs"
        say "Layer $1 that came is not the one of the boot plan (a block has another hash), round $round of 2."
    done
    fail verify digest-mismatch "Layer $1 of $plan_version is damaged on its way or on the server: a block has another hash."
}

# mapped NAME: the device of that name; udev, which would link it in /dev/mapper, is not there.
mapped() {
    for node in /sys/block/dm-*; do
        read -r name <"$node/dm/name"
        [ "$name" != "$1" ] || echo "/dev/${node##*/}"
    done
}
