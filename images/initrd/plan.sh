# shellcheck shell=sh disable=SC2034,SC2154 # its variables come from init or go there
# Asks the server what to boot. Reads: server, mac, token, keys. Sets the plan_* variables.

# adapters: PCI base class 03, as docs/protocol.md writes them; sysfs lists them by address.
adapters() {
    list=
    for device in /sys/bus/pci/devices/*; do
        read -r class <"$device/class" || continue
        case $class in 0x03*) ;; *) continue ;; esac
        read -r vendor <"$device/vendor"
        read -r product <"$device/device"
        read -r subvendor <"$device/subsystem_vendor"
        read -r subproduct <"$device/subsystem_device"
        ids=${vendor#0x}:${product#0x},${subvendor#0x}:${subproduct#0x},${class#0x}
        list="$list${list:+%3B}${device##*/},$ids"
    done
    echo "$list"
}

# ask: one POST; its answer is /run/fleet/plan, in the end as the daemon reads it.
ask() {
    read -r boot_id </proc/sys/kernel/random/boot_id
    read -r _ memory_kib _ </proc/meminfo
    timeout 15 wget -q -O /run/fleet/signed "$server/boot/v1/plan" --post-data \
        "token=$token&mac=$mac&boot_id=$boot_id&kernel=$(uname -r)&memory_kib=$memory_kib&pci=$(adapters)&uptime_ms=$(uptime_ms)" \
        2>/run/fleet/answer
}

# signed: whether a key of the command line signed what came, for this very boot. /run/fleet/plan is then what it signed.
signed() {
    grep -v '^signature=' /run/fleet/signed >/run/fleet/plan
    printf 'untrusted comment: plan\n%s\n' "$(grep '^signature=' /run/fleet/signed | cut -d = -f 2-)" >/run/fleet/signature
    proof=1
    for key in $(echo "$keys" | tr , ' '); do
        printf 'untrusted comment: key\n%s\n' "$key" >/run/fleet/key
        signify-openbsd -V -q -p /run/fleet/key -x /run/fleet/signature -m /run/fleet/plan 2>/run/fleet/answer && proof=0
    done
    rm /run/fleet/signed /run/fleet/signature /run/fleet/key
    [ "$proof" -eq 0 ] && grep -qx "boot=$boot_id" /run/fleet/plan
}

# plan: returns when there is something to boot.
plan() {
    tries=0
    while :; do
        plan_action=
        if ask; then
            signed || fail plan bad-signature "The boot plan is not signed, for this boot, by a key that this PC was started with."
            read_plan </run/fleet/plan
            tries=0
        else
            read -r answer </run/fleet/answer || answer="no answer"
            case $answer in
                *"HTTP/1."?" 4"[!2]?*) fail plan refused "The server refuses this boot (${answer#*HTTP/1.? })." ;;
            esac
            tries=$((tries + 1))
            [ "$tries" -le 10 ] || fail plan unreachable "The server at $server does not answer."
            say "The server at $server does not answer (${answer#wget: }); try $tries of 10."
            # The firmware's lease may have been one for the firmware only.
            [ "$tries" -ne 3 ] || [ "$lease" != firmware ] || request_lease
            pause "$tries"
            continue
        fi
        case $plan_action in
            boot)
                check_plan
                return
                ;;
            wait)
                say "Waiting: $plan_reason"
                sleep "${plan_retry_s:-10}"
                ;;
            restart)
                say "Restarting: $plan_reason"
                sleep 2
                reboot -f
                sleep 60
                ;;
            refuse) fail plan refused "$plan_reason" ;;
            *) fail plan other "The server's boot plan has no action this initrd knows (${plan_action:-none})." ;;
        esac
    done
}

# pause N: back-off before the next try: 1, 2, 4, 8, then 15 seconds.
pause() {
    case $1 in 1) sleep 1 ;; 2) sleep 2 ;; 3) sleep 4 ;; 4) sleep 8 ;; *) sleep 15 ;; esac
}

# read_plan: lines key=value from standard input; no eval, an unknown key means nothing to the initrd.
read_plan() {
    while read -r line || [ -n "$line" ]; do
        value=${line#*=}
        case ${line%%=*} in
            protocol) plan_protocol=$value ;;
            action) plan_action=$value ;;
            reason) plan_reason=$value ;;
            retry_s) plan_retry_s=$value ;;
            client) plan_client=$value ;;
            name) plan_name=$value ;;
            class) plan_class=$value ;;
            version) plan_version=$value ;;
            root) plan_root=$value ;;
            root_bytes) plan_root_bytes=$value ;;
            root_hash) plan_root_hash=$value ;;
            root_blocks) plan_root_blocks=$value ;;
            check) plan_check=$value ;;
            kind) plan_kind=$value ;;
            layers) plan_layers=$value ;;
            fetch) plan_fetch=$value ;;
            share) plan_share=$value ;;
            plan) plan_plan=$value ;;
            plan_bytes) plan_plan_bytes=$value ;;
            home) plan_home=$value ;;
            home_kind) plan_home_kind=$value ;;
            home_bytes) plan_home_bytes=$value ;;
            user) plan_user=$value ;;
            tmpfs_percent) plan_tmpfs_percent=$value ;;
            home_percent) plan_home_percent=$value ;;
        esac
    done
}

# check_plan: these values become paths, sizes and URLs. Sets make_root, the script for this kind of root.
check_plan() {
    [ "$plan_protocol" = 1 ] || bad_plan protocol
    : "${plan_kind:=symlink}"
    check_layers
    case $plan_kind in
        symlink) make_root=mkroot ;;
        bind | overlay) make_root=mkroot-$plan_kind ;;
        *) fail plan other "The boot plan asks for a root of the kind $plan_kind, which this initrd cannot make." ;;
    esac
    case ${plan_home_kind:=overlay} in
        overlay | copy) ;;
        *) fail plan other "The boot plan asks for a home of the kind $plan_home_kind, which this initrd cannot make." ;;
    esac
    for value in "$plan_root_bytes" "$plan_root_blocks" "$plan_plan_bytes" "$plan_home_bytes" "$plan_tmpfs_percent" "$plan_home_percent"; do
        case $value in '' | *[!0-9]*) bad_plan "a number" ;; esac
    done
    for value in "$plan_root" "$plan_root_hash" "$plan_plan" "$plan_home"; do
        case $value in *[!0-9a-f]*) bad_plan "a digest" ;; esac
    done
    case ${#plan_root},${#plan_root_hash},${#plan_plan},${#plan_home} in 64,128,64,64) ;; *) bad_plan "a digest" ;; esac
    case $plan_name in '' | -* | *[!A-Za-z0-9-]*) bad_plan name ;; esac
    case $plan_user in '' | [!a-z_]* | *[!a-z0-9_-]*) bad_plan user ;; esac
    check_share
}

# check_layers: plan_layers is a list of ROOT,BYTES,HASH,BLOCKS,PLAN,BYTES, the lowest first. The kind of root says that there is
# one, so that an initrd without layers refuses the plan instead of booting without a driver. Sets layers_bytes.
check_layers() {
    layers_bytes=0
    case $plan_layers in *[!0-9a-f,\ ]*) bad_plan "a layer" ;; esac
    case $plan_kind in
        *+layers) [ -n "$plan_layers" ] || bad_plan layers ;;
        *) [ -z "$plan_layers" ] || bad_plan layers ;;
    esac
    plan_kind=${plan_kind%+layers}
    for layer in $plan_layers; do
        # shellcheck disable=SC2046 # six words
        set -- $(echo "$layer" | tr , ' ')
        case $#,${#1},${#3},${#5} in 6,64,128,64) ;; *) bad_plan "a layer" ;; esac
        case $2$4$6 in *[!0-9]*) bad_plan "a layer" ;; esac
        layers_bytes=$((layers_bytes + $2 + $6))
    done
}

bad_plan() {
    fail plan other "The server's boot plan is not one this initrd can read ($1)."
}
