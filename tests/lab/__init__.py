"""Virtual PCs on a virtual LAN, as ordinary Python.

    with Lab(gateway_port=8001) as lab:
        pc = lab.pc("A1", gpu="cirrus")
        pc.boot()
        pc.wait_for("login: ", 120)

Used by the tests, the benches and the demo. Needs Debian's qemu-system-x86, ipxe-qemu, and for the bridged
network root, iproute2, util-linux and dnsmasq-base. Everything it starts ends with it, even by kill -9.
"""

from tests.lab.lab import Lab
from tests.lab.pc import Pc
from tests.lab.process import LabError

__all__ = ["Lab", "LabError", "Pc"]
