"""A shard behind a network of its own, whose packets can be dropped: namespaces, veth pairs and iptables.

    this machine ──veth── gate ──veth── inside        rules are in the gate's FORWARD chain: both ends see real losses

Needs root; `why_not` says what is missing. Nothing of this machine's own firewall is touched.
"""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_NUMBERS = itertools.count()


class Network:
    """outside, inside: addresses by which the two ends see each other."""

    def __init__(self, number: int) -> None:
        subnet = f"10.201.{number % 256}"
        self.outside, self.inside = f"{subnet}.1", f"{subnet}.6"
        self._gates = f"{subnet}.2", f"{subnet}.5"
        self._subnet = f"{subnet}.4/30"
        self._gate, self._place = f"ms{number}g", f"ms{number}i"
        self._wires = [f"ms{number}{letter}" for letter in "abcd"]

    def lay(self) -> None:
        """Raises CalledProcessError where this machine does not allow it."""
        near, gate_near, gate_far, far = self._wires
        for name in (self._gate, self._place):
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", gate_near, "netns", self._gate)
        _run("ip", "-n", self._gate, "link", "add", gate_far, "type", "veth", "peer", "name", far, "netns", self._place)
        _run("ip", "address", "add", f"{self.outside}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        for name, address, where in (
            (gate_near, self._gates[0], self._gate),
            (gate_far, self._gates[1], self._gate),
            (far, self.inside, self._place),
        ):
            _run("ip", "-n", where, "address", "add", f"{address}/30", "dev", name)
            _run("ip", "-n", where, "link", "set", name, "up")
        _run("ip", "-n", self._place, "link", "set", "lo", "up")
        _run("ip", "-n", self._place, "route", "add", "default", "via", self._gates[1])
        _run("ip", "route", "add", self._subnet, "via", self._gates[0])
        _run(*self._at_gate("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        _run(*self._at_gate("iptables", "-P", "FORWARD", "ACCEPT"))

    def remove(self) -> None:
        """What is there of it; wires and routes go with the namespaces."""
        for name in (self._gate, self._place):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=10)

    def command_inside(self, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self._place, *command]

    def cut(self, port: int) -> None:
        """Drop every packet from and to a TCP port of the inside."""
        self._rule(port, ())

    def lose(self, port: int, share: float) -> None:
        """Drop this share of the packets from and to a TCP port of the inside, each way."""
        self._rule(port, ("-m", "statistic", "--mode", "random", "--probability", str(share)))

    def heal(self) -> int:
        """No more drops; how many packets were."""
        told = _run(*self._at_gate("iptables", "-nvxL", "FORWARD"))
        _run(*self._at_gate("iptables", "-F", "FORWARD"))
        return sum(int(line.split()[0]) for line in told.splitlines() if " DROP " in line)

    def _rule(self, port: int, match: Sequence[str]) -> None:
        for side in ("--sport", "--dport"):
            _run(*self._at_gate("iptables", "-A", "FORWARD", "-p", "tcp", side, str(port), *match, "-j", "DROP"))

    def _at_gate(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self._gate, *command]


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=10).stdout


@contextmanager
def network() -> Iterator[Network]:
    laid = Network(os.getpid() + next(_NUMBERS))
    try:
        laid.lay()
        yield laid
    finally:
        laid.remove()


def why_not() -> str:
    """What keeps this machine from having such a network, in words; empty when nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if absent := [tool for tool in ("ip", "iptables") if not shutil.which(tool)]:
        return f"{' and '.join(absent)} not installed"
    try:
        with network() as laid:
            laid.lose(1, 0.3)
    except subprocess.CalledProcessError as error:
        return f"this machine refuses {' '.join(error.cmd)}: {error.stderr.strip()}"
    return ""
