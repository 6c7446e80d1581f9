"""A proxy before an object store that spoils some requests: with 500, late, not at all, uploads and answers cut."""

import random
import socket
import socketserver
import threading
import time

WAYS = ("500", "cut before", "cut head", "cut within", "cut upload", "slow", "silent")


class Proxy(socketserver.ThreadingTCPServer):
    """Hands requests on, but spoils a share of them in one of the ways; one connection a request.

    It spoils `most` at most, and only those whose head holds `only`.

    500: an answer of that status, the store not asked. cut before: closed without an answer, the store not asked. cut
    head: a few bytes of an answer. cut within: half of it. cut upload: half a body reaches the store, then both
    connections close. slow: asked after `slow` seconds. silent: done, but the client hears nothing until it gives up.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(
        self,
        target: str,
        share: float,
        ways: tuple[str, ...],
        most: int = 1 << 30,
        only: bytes = b"",
        slow: float = 0.3,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.share, self.ways, self.most, self.only, self.slow = target, share, ways, most, only, slow
        self.spoilt = dict.fromkeys(ways, 0)
        self.random = random.Random(7)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def at(self) -> str:
        return "{}:{}".format(*self.server_address)

    def fault(self, head: bytes, uploads: bool) -> str:
        chosen = self.random.random() < self.share and self.only in head
        if not chosen or sum(self.spoilt.values()) >= self.most:
            return ""
        way = self.random.choice(self.ways)
        if way == "cut upload" and not uploads:
            return ""
        self.spoilt[way] += 1
        return way


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        head = self._head(self.rfile)
        if not head:
            return
        fields = dict(self._fields(head))
        chunked = fields.get(b"transfer-encoding") == b"chunked"
        length = int(fields.get(b"content-length", 0))
        way = self.server.fault(head, uploads=length > 0 or chunked)
        if way == "cut before":
            return
        if b"expect" in fields:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if way == "cut upload":
            self._send(head, self.rfile.readline() if chunked else self.rfile.read(length // 2)).close()
            return
        body = b"".join(self._chunks()) if chunked else self.rfile.read(length)
        if way == "500":
            self.wfile.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if way == "slow":
            time.sleep(self.server.slow)
        with self._send(head, body) as upstream:
            answer = b"".join(iter(lambda: upstream.recv(1 << 16), b""))
        if way == "silent":
            self.rfile.read(1)  # until the client closes
            return
        self.wfile.write(answer[: {"cut head": 60, "cut within": len(answer) // 2}.get(way)])

    def _chunks(self):
        """A body that comes in chunks, as it comes."""
        size = 1
        while size:
            line = self.rfile.readline()
            size = int(line.split(b";")[0], 16)
            yield line + self.rfile.read(size) + (self.rfile.readline() if size else self._head(self.rfile) or b"\r\n")

    def _send(self, head: bytes, body: bytes) -> socket.socket:
        """A connection to the store, with the request or the beginning of one on its way."""
        host, port = self.server.target.split(":")
        lines = [line for line in head.split(b"\r\n") if line.split(b":")[0].lower() not in (b"connection", b"expect")]
        upstream = socket.create_connection((host, int(port)))
        upstream.sendall(b"\r\n".join([*lines[:-2], b"Connection: close", b"", b""]) + body)
        return upstream

    @staticmethod
    def _head(file) -> bytes:
        lines = []
        while (line := file.readline()) not in (b"", b"\r\n"):
            lines.append(line)
        return b"".join([*lines, b"\r\n"]) if lines else b""

    @staticmethod
    def _fields(head: bytes):
        return [
            (k.strip().lower(), v.strip()) for k, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        ]
