"""What a client says of itself, read from sysfs, procfs and what the initrd left. `root` is / but in tests."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from .network import network


def read(path: str) -> str:
    """A small file's text without its white space; '' where there is none (not every PC has every fact)."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def adapters(root: str) -> list[dict[str, str]]:
    """PCI devices of base class 03 by address; ids are lower-case hex without 0x (sysfs has them with it)."""
    found = []
    devices = root + "/sys/bus/pci/devices"
    for address in sorted(os.listdir(devices)) if os.path.isdir(devices) else []:
        names = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class")
        ids = [read(f"{devices}/{address}/{name}").lower().replace("0x", "") for name in names]
        if ids[4].startswith("03"):
            keys = ("vendor", "device", "subvendor", "subdevice", "class")
            found.append({"address": address, **dict(zip(keys, ids))})  # noqa: B905 - strict= needs 3.10
    return found


def boot_ms(root: str) -> dict[str, int]:
    """Milliseconds of uptime at each stage: the initrd's own notes, then systemd's start and ours."""
    lines = [line.partition("=") for line in read(root + "/run/fleet/boot").splitlines()]
    stages = {key[:-3]: int(value) for key, _, value in lines if key.endswith("_ms") and value.isdecimal()}
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    try:  # the socket that systemd makes once it has read its units
        stages["systemd"] = int((uptime - time.time() + os.stat(root + "/run/systemd/notify").st_mtime) * 1000)
    except OSError:
        stages["systemd"] = 0
    stages["daemon"] = int(uptime * 1000)
    return stages


def facts(plan: Mapping[str, str], root: str = "") -> dict[str, object]:
    """The facts of docs/protocol.md."""
    names = dict(line.partition("=")[::2] for line in read(root + "/run/fleet/network").splitlines())
    memory = [line.split()[1] for line in read(root + "/proc/meminfo").splitlines() if "MemTotal" in line]
    return {
        "adapters": adapters(root),
        "memory_kib": int(memory[0]) if memory else 0,
        "cpus": os.cpu_count() or 1,
        "clock_ms": int(time.time() * 1000),
        "kernel": read(root + "/proc/sys/kernel/osrelease"),
        "version_digest": plan.get("digest", ""),
        "class": plan.get("class", ""),
        "boot_ms": boot_ms(root),
        "product": read(root + "/sys/class/dmi/id/product_name"),
        "serial": read(root + "/sys/class/dmi/id/product_serial"),
        "network": network(names.get("interface", "")),
    }
