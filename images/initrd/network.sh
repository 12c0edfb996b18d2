# shellcheck shell=sh disable=SC2034,SC2154 # its variables come from init or go there
# Brings up the interface the firmware booted from. Reads: mac, lease_* (command line). Sets: interface, lease.

# drivers: load what the hardware asks for by its modalias, then what those buses bring to light (virtio, USB).
drivers() {
    for bus in "pci" "virtio vmbus xen" "usb"; do
        wanted=
        for directory in $bus; do
            for file in "/sys/bus/$directory/devices"/*/modalias; do
                [ -e "$file" ] || continue
                read -r alias <"$file"
                case $alias in
                    # Of PCI only network (class 02), virtio's and Xen's own devices, and USB controllers.
                    pci:*bc02sc* | pci:v00001AF4* | pci:v00005853* | pci:*bc0Csc03i[23]*) ;;
                    pci:*) continue ;;
                esac
                wanted="$wanted $alias"
            done
        done
        # shellcheck disable=SC2086 # a list of words
        [ -z "$wanted" ] || /fleet/modprobe -abq $wanted 2>/dev/null
        if find_interface; then return; fi
    done
}

# find_interface: the one whose address is the MAC the server knows.
find_interface() {
    for file in /sys/class/net/*/address; do
        read -r address <"$file" || continue
        if [ "$address" = "$mac" ]; then
            interface=${file%/address}
            interface=${interface##*/}
            return 0
        fi
    done
    return 1
}

# network: interface up, with the firmware's lease if the command line tells it, else with one of our own.
network() {
    interface=
    drivers
    tries=0
    until find_interface; do # a USB adapter or a slow PHY comes later
        tries=$((tries + 1))
        [ "$tries" -le 50 ] || 
            fail network other "No network card with address $mac: its driver is not in the initrd."
        usleep 200000
        [ $((tries % 10)) -ne 0 ] || drivers
    done
    ip link set lo up
    ip link set "$interface" up
    if known_lease; then
        lease=firmware
        interface=$interface ip=$lease_ip mask=$lease_mask router=$lease_router dns=$lease_dns domain='' \
            /fleet/lease bound
    else
        request_lease
    fi
}

# known_lease: the DHCP server gave the firmware an address seconds ago; asking again would only cost time.
known_lease() {
    case $lease_ip,$lease_mask,$lease_router,$lease_dns in
        ,* | *,,*,* | *[!0-9.,]*) return 1 ;;
    esac
}

# request_lease: DHCP. A switch with spanning tree is deaf for half a minute after the link came up.
request_lease() {
    lease=dhcp
    for round in 1 2 3 4 5; do
        udhcpc -f -q -n -t 8 -T 2 -i "$interface" -s /fleet/lease >/dev/null 2>&1 && return
        read -r carrier <"/sys/class/net/$interface/carrier" || carrier=0
        if [ "$carrier" = 1 ]; then
            say "No answer from a DHCP server on $interface, round $round of 5."
        else
            say "No link on $interface, round $round of 5: look at the cable."
        fi
    done
    fail network unreachable "No DHCP server gave this PC an address."
}
