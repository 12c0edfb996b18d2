# shellcheck shell=sh disable=SC2034,SC2154 # its variables come from init or go there
# Fits the new root to this client and hands over. Reads: the plan_* variables, mac, interface.

# home: the user's home is the template under a layer of its own that a cycle throws away, or a copy of it.
home() {
    mkdir -p /run/fleet/home/template /run/fleet/home/upper
    mount -t squashfs -o loop,ro,nodev,nosuid /run/fleet/home.squashfs /run/fleet/home/template &&
        mount -t tmpfs -o "mode=0700,nodev,nosuid,size=$plan_home_percent%" home /run/fleet/home/upper ||
        return
    [ ! -L /newroot/home ] || rm /newroot/home
    [ ! -L "/newroot/home/$plan_user" ] || rm "/newroot/home/$plan_user"
    mkdir -p "/newroot/home/$plan_user"
    if [ "$plan_home_kind" = copy ]; then
        home_copy
        return
    fi
    mkdir /run/fleet/home/upper/upper /run/fleet/home/upper/work
    # An overlay's top directory is the upper one: it has to look like the template's.
    chown "$(stat -c %u:%g /run/fleet/home/template)" /run/fleet/home/upper/upper
    chmod "$(stat -c %a /run/fleet/home/template)" /run/fleet/home/upper/upper
    mount -t overlay -o "nodev,nosuid,lowerdir=/run/fleet/home/template,upperdir=/run/fleet/home/upper/upper,workdir=/run/fleet/home/upper/work" \
        home "/newroot/home/$plan_user"
}

# home_copy: the layer is the whole home, filled by the image's own cp: busybox's knows no extended attributes.
home_copy() {
    mkdir /run/fleet/home/upper/upper /newroot/.home &&
        mount --rbind /run/fleet/home /newroot/.home &&
        chroot /newroot cp -a /.home/template/. /.home/upper/upper || return
    umount -l /newroot/.home && rmdir /newroot/.home &&
        mount --bind /run/fleet/home/upper/upper "/newroot/home/$plan_user"
}

# identity: host name, machine id (the client's own, the same at each boot) and name service.
identity() {
    rm -f /newroot/etc/hostname /newroot/etc/machine-id /newroot/etc/resolv.conf
    echo "$plan_name" >/newroot/etc/hostname
    hosts=$(grep -v '^127\.0\.1\.1[[:space:]]' /newroot/etc/hosts 2>/dev/null)
    rm -f /newroot/etc/hosts
    printf '%s\n127.0.1.1 %s\n' "${hosts:-127.0.0.1 localhost}" "$plan_name" >/newroot/etc/hosts
    machine_id=$(echo "$plan_client" | tr -d -)
    case $machine_id in *[!0-9a-f]*) ;; ????????????????????????????????) echo "$machine_id" >/newroot/etc/machine-id ;; esac
    # Follows the lease, see fleet-lease.service.
    ln -s /run/fleet/resolv.conf /newroot/etc/resolv.conf
}

# programs: what the user may call (fleet-hold), by its name in login shells. Where profile.d is a link into the share, a copy
# takes its place. No PC stays off for want of it.
programs() {
    ln -s ../agent/hands/ask.py /run/fleet/bin/fleet-hold
    if [ -L /newroot/etc/profile.d ]; then
        rm /newroot/etc/profile.d && cp -a /newroot/.ro/etc/profile.d /newroot/etc/profile.d
    fi
    [ ! -d /newroot/etc/profile.d ] || echo "PATH=\$PATH:/run/fleet/bin" >/newroot/etc/profile.d/fleet.sh
}

# units: the daemon with its units, and what systemd must know of a root that has no disk.
units() {
    mkdir -p /run/systemd/system/multi-user.target.wants /run/systemd/system-generators /run/systemd/network
    cp -a /fleet/agent /run/fleet/agent
    cp -a /run/fleet/agent/units/. /run/systemd/system/
    cp /fleet/fleet-lease.service /run/systemd/system/
    cp /fleet/lease /run/fleet/bin/
    cp /fleet/fleet-scrub.service /run/systemd/system/
    cp /fleet/scrub /run/fleet/bin/
    printf 'server=%s\nmac=%s\ntoken=%s\nversion=%s\nfetch=%s\n' \
        "$server" "$mac" "$token" "$plan_version" "$plan_fetch" >/run/fleet/scrub
    chmod 600 /run/fleet/scrub
    [ "$plan_fetch" = http ] || keep_share
    for unit in fleet-agent fleet-lease fleet-scrub; do
        ln -s "../$unit.service" /run/systemd/system/multi-user.target.wants/
    done
    # It looks for a disk behind /usr and stumbles over the symlinks.
    ln -s /dev/null /run/systemd/system-generators/systemd-gpt-auto-generator
    # Newer kernels let udev rename an interface that is up; the lease is kept by its name.
    printf '[Match]\nMACAddress=%s\n[Link]\nName=%s\n' "$mac" "$interface" >/run/systemd/network/00-fleet.link
    echo "user=$plan_user" >/run/fleet/user
}

handover() {
    for point in dev proc sys run; do
        mount --move "/$point" "/newroot/$point"
    done
    # A root so damaged that systemd does not come up is found by what needs nothing of it.
    # shellcheck disable=SC2094 # a device, not a file
    chroot /newroot /run/fleet/bin/busybox setsid sh /run/fleet/bin/scrub late </newroot/dev/null >/newroot/dev/null 2>&1 &
    # It must be the first process that does it.
    trap - EXIT
    exec switch_root /newroot /sbin/init
}
