# shellcheck shell=sh disable=SC2034,SC2154 # its variables come from init or go there
# What the client says: on its screens, in /run/fleet/boot, and to the server when it is in trouble.

# say SENTENCE: a line on every console (the kernel's own ring buffer reaches all of them, and the journal).
say() {
    echo "<1>fleet: $1" >/dev/kmsg
}

# stage NAME: this stage is over now; milliseconds since the kernel started.
stage() {
    read -r now _ </proc/uptime
    echo "$1_ms=${now%.*}${now#*.}0" >>/run/fleet/boot
}

# uptime_ms: the same clock, printed.
uptime_ms() {
    read -r now _ </proc/uptime
    echo "${now%.*}${now#*.}0"
}

# form TEXT: TEXT for a form field; what a sentence does not need becomes a space.
form() {
    printf %s "$1" | tr -c 'A-Za-z0-9._:,/-' + | cut -c 1-500
}

# fail STAGE ERROR SENTENCE: say it here and to the server, then start over. STAGE and ERROR are the closed
# sets of docs/protocol.md. Never a shell, unless the one who wrote the command line asked for it.
fail() {
    trap - EXIT
    say "THIS PC CANNOT START: $3"
    if [ -n "$server" ]; then
        timeout 10 wget -q -O /dev/null "$server/boot/v1/trouble" --post-data \
            "token=$token&mac=$mac&stage=$1&error=$2&detail=$(form "$3")" 2>/dev/null ||
            say "The server at $server could not be told."
    fi
    if [ -n "$debug" ]; then
        say "fleet.debug: a shell on the console; it starts over when you leave it."
        setsid sh -c 'exec sh </dev/console >/dev/console 2>&1'
    else
        say "It starts over in $restart_delay_s seconds."
        sleep "$restart_delay_s"
    fi
    sync
    reboot -f
    sleep 60 # what is left to do while the machine goes down
}
