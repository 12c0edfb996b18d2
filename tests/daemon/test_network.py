"""Magic packets reach all of a network, on each that the PC is in, with the password of those that want one. Real networks."""

from collections.abc import Iterator

import pytest

from agents.daemon import protocol
from tests.daemon.gateway import Gateway
from tests.daemon.namespace import Namespace
from tests.daemon.running import AGENT, Daemon

pytestmark = pytest.mark.root
MAC, SECURE = "52:54:00:12:34:56", "00:01:02:03:04:05"


class Lan(Namespace):
    """Two networks, `one` and `two`, with nobody but us and a neighbour who hears everything; no route leads elsewhere."""

    kinds = (*Namespace.kinds, "--net")


LAN = """
def ip(*words): subprocess.run(["ip", *words], check=True)
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
neighbour = subprocess.Popen(["unshare", "--net", "sleep", "600"], **quiet)
while os.readlink(f"/proc/{neighbour.pid}/ns/net") == os.readlink("/proc/self/ns/net"): time.sleep(0.01)
subprocess.run(["mount", "-t", "sysfs", "own", "/sys"], check=True)
ip("link", "set", "lo", "up")
for name, address in (("one", "10.77.1.2/24"), ("two", "10.77.2.70/26"), ("off", "10.77.3.2/24"), ("bare", "")):
    ip("link", "add", name, "type", "veth", "peer", "name", "far-" + name)
    ip("link", "set", "far-" + name, "netns", str(neighbour.pid))
    subprocess.run(["nsenter", "-t", str(neighbour.pid), "-n", "ip", "link", "set", "far-" + name, "up"], check=True)
    if address: ip("address", "add", address, "brd", "+", "dev", name)
    if name != "off": ip("link", "set", name, "up")
with open("/run/neighbour", "w") as file: file.write(str(neighbour.pid))
"""
# Runs in the neighbour's namespace: each frame to port 9 as [interface, MAC it is for, address it is for, payload].
HEAR = """
import json, socket, struct, sys
ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
ear.settimeout(2)
print("ready", flush=True)
heard = []
try:
    while True:
        frame, (name, *_) = ear.recvfrom(2048)
        if frame[23] == 17 and struct.unpack("!H", frame[36:38])[0] == 9:
            heard.append([name, frame[:6].hex(":"), socket.inet_ntoa(frame[30:34]), frame[42:].hex()])
except TimeoutError:
    print(json.dumps(heard))
"""
SEND = """
from agent.hands import network
with open("/run/neighbour") as file: neighbour = file.read()
ear = subprocess.Popen(["nsenter", "-t", neighbour, "-n", sys.executable, "-c", HEAR], stdout=subprocess.PIPE, text=True)
assert ear.stdout.readline() == "ready\\n"
sent = network.wake(SLEEPERS, PACKETS)
result = [sent, json.loads(ear.communicate()[0])]
"""


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan() as lan:
        lan.python(LAN)
        yield lan


def wake(lan: Lan, packets: int, *sleepers: dict[str, str]) -> tuple[int, list[list[str]]]:
    sent, heard = lan.python(f"HEAR, SLEEPERS, PACKETS = {HEAR!r}, {list(sleepers)!r}, {packets}\n" + SEND)
    return sent, heard


@pytest.mark.slow
def test_a_magic_packet_goes_to_everybody_on_every_network(lan: Lan) -> None:
    sent, heard = wake(lan, 1, {"mac": MAC, "secure": ""})
    payload = "ff" * 6 + "525400123456" * 16
    everybody = "ff:ff:ff:ff:ff:ff"
    assert sorted(heard) == [
        ["far-one", everybody, "10.77.1.255", payload],
        ["far-one", everybody, "255.255.255.255", payload],
        ["far-two", everybody, "10.77.2.127", payload],
        ["far-two", everybody, "255.255.255.255", payload],
    ]
    assert sent == len(heard)


@pytest.mark.slow
def test_the_password_follows_and_each_sleeper_is_called_as_often_as_ordered(lan: Lan) -> None:
    sent, heard = wake(lan, 3, {"mac": MAC, "secure": SECURE}, {"mac": "52:54:00:AB:CD:EF", "secure": ""})
    payloads = [payload for *_, payload in heard]
    assert sent == len(heard) == 2 * 4 * 3
    assert payloads.count("ff" * 6 + "525400123456" * 16 + "000102030405") == 12
    assert payloads.count("ff" * 6 + "525400abcdef" * 16) == 12


def test_a_network_is_told_as_what_it_is(lan: Lan) -> None:
    code = (
        "from agent.hands.network import network\nresult = [network(n) for n in ('one', 'two', 'bare', 'nowhere', '')]"
    )
    assert lan.python(code) == ["10.77.1.0/24", "10.77.2.64/26", "", "", ""]


SENDER = """
from agent.daemon import agent
agent.network.wake = lambda sleepers, packets: len(sleepers) * packets * NETWORKS
agent.main()
"""


@pytest.mark.parametrize(("networks", "state"), [(2, protocol.SUCCEEDED), (0, protocol.FAILED)])
def test_what_could_be_sent_is_reported(gateway: Gateway, networks: int, state: str) -> None:
    with Daemon() as daemon:
        daemon.begin(gateway, (*AGENT[:-2], "-c", SENDER.replace("NETWORKS", str(networks))))  # not on our own networks
        gateway.wait(lambda: gateway.polls)
        command = gateway.command(protocol.RELAY, {"macs": [{"mac": MAC, "secure": SECURE}], "packets": 3})
        gateway.send(gateway.wrap(command))
        report = gateway.wait(lambda: gateway.told(command.command, protocol.SUCCEEDED, protocol.FAILED))
    assert (report["state"], report["result"]) == (state, {"sent": 3 * networks})
