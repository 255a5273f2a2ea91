"""NetworkPolicies as nft rules in the network of each pod."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from tests.support.hosts import Host

Manifest = Mapping[str, Any]

_SIDES = {"Ingress": ("input", "iif", "from", "saddr"), "Egress": ("output", "oif", "to", "daddr")}


class Labelled(Protocol):
    """A pod."""

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def host(self) -> Host: ...


def why_not() -> str | None:
    """Why this machine cannot enforce network policies; None if it can."""
    return None if shutil.which("nft") else "no nft on this machine (package nftables)"


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects what has these labels. An empty one selects everything."""
    assert set(selector) <= {"matchLabels"}, f"no {selector} in this emulation"
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def enforce(policies: Sequence[Manifest], pods: Sequence[Labelled]) -> None:
    """Let the pods have the connections that the policies allow, and no others."""
    for pod in pods:
        enter = ["nsenter", "--target", str(pod.host.init), "--net", "nft", "-f", "-"]
        subprocess.run(enter, input="\n".join(_ruleset(policies, pod, pods)), text=True, check=True)


def _ruleset(policies: Sequence[Manifest], pod: Labelled, pods: Sequence[Labelled]) -> Iterator[str]:
    yield "flush ruleset"
    yield "table inet pods {"
    for kind, (chain, interface, peers, address) in _SIDES.items():
        specs = [policy["spec"] for policy in policies if selects(policy["spec"]["podSelector"], pod.labels)]
        specs = [spec for spec in specs if kind in spec["policyTypes"]]
        yield f"chain {chain} {{ type filter hook {chain} priority 0; policy {'drop' if specs else 'accept'};"
        yield f"{interface} lo accept; ct state established,related accept"
        for rule in (rule for spec in specs for rule in spec.get(kind.lower(), [])):
            for addresses in _addresses(rule[peers], pods):
                for port in _ports(rule.get("ports")):
                    yield f"ip {address} {addresses} {port} accept"
        yield "}"
    yield "}"


def _addresses(peers: Sequence[Manifest], pods: Sequence[Labelled]) -> Iterator[str]:
    """What a rule says of the other side, in nft's words."""
    for peer in peers:
        match peer:
            case {"namespaceSelector": _}:  # another namespace: none of these pods
                continue
            case {"podSelector": selector}:
                if found := [other.host.address for other in pods if selects(selector, other.labels)]:
                    yield f"{{ {', '.join(found)} }}"
            case _:
                raise NotImplementedError(f"peer {peer}")


def _ports(ports: Sequence[Manifest] | None) -> Iterator[str]:
    if ports is None:
        yield ""
    for port in ports or ():
        assert isinstance(port["port"], int), "named ports are not emulated"
        assert "endPort" not in port
        yield f"{port.get('protocol', 'TCP').lower()} dport {port['port']}"
