"""What processes listen on."""

import contextlib
import ipaddress
import os
from pathlib import Path

_LISTEN = "0A"


def listeners(pids: set[int]) -> list[tuple[str, int, int]]:
    """Address, port and process of every TCP socket that one of the processes listens on."""
    sockets = {}
    for file in ("tcp", "tcp6"):
        for line in Path("/proc/net", file).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == _LISTEN:
                sockets[f"socket:[{columns[9]}]"] = _address(columns[1])
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    if (name := os.readlink(descriptor.path)) in sockets:
                        found.append((*sockets[name], pid))
    return sorted(set(found))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    words = [bytes.fromhex(host[start : start + 8])[::-1] for start in range(0, len(host), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(port, 16)
