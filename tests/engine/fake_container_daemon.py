"""A fake of Podman's and Docker's HTTP API on a unix socket, for what `container_api` asks of it.

It checks the body of a container as the API's reference describes it, and starts what the container would run as a
plain process: paths of mounts are translated, nothing is isolated. So it shows that requests, order and life fit
together, never that a real daemon takes them. Named fake, for it is one.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse

import h11

from madang.testing.ports import free_port

KNOWN = {
    "Image",
    "Entrypoint",
    "Cmd",
    "Env",
    "WorkingDir",
    "StopSignal",
    "Labels",
    "HostConfig",
}
OF_OTHER_CLIENTS = {
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "NetworkDisabled",
    "OpenStdin",
    "StdinOnce",
    "Tty",
}
"""What other clients always send, and what is the same as not to say it."""
HOST_KNOWN = {
    "NetworkMode",
    "Init",
    "AutoRemove",
    "RestartPolicy",
    "Mounts",
    "Tmpfs",
    "ShmSize",
    "Memory",
    "MemorySwap",
    "NanoCpus",
    "PidsLimit",
    "OomScoreAdj",
    "Devices",
    "CapDrop",
    "CapAdd",
    "SecurityOpt",
    "Ulimits",
    "LogConfig",
}


class FakeContainer:
    def __init__(self, number, name, body, folder):
        self.id = f"{number:064x}"
        self.name = name
        self.body = body
        self.folder = folder
        self.process = None
        self.log = folder / f"{self.id}.log"
        self.ended = asyncio.Event()
        self.code = None
        self.port = free_port()

    @property
    def is_running(self):
        return self.process is not None and self.code is None

    def argv(self):
        mounts = {one["Target"]: one["Source"] for one in self.body["HostConfig"]["Mounts"]}
        mounts |= {"/tmp/model": str(self.folder / f"{self.id}-model")}

        def outside(text):
            for target in sorted(mounts, key=len, reverse=True):
                text = re.sub(rf"(^|=){re.escape(target)}(?=$|/|=)", lambda m, t=target: m[1] + mounts[t], text)
            return text

        entry, arguments = self.body["Entrypoint"], self.body["Cmd"]
        # One network for all, so that each container's port must be another one's.
        moved = [outside(one).replace("--bridge-port=8000", f"--bridge-port={self.port}") for one in arguments]
        moved = [str(self.port) if one == "8000" else one for one in moved]
        assert entry[1:] == ["-I", "/madang/vendor_start.py"], entry
        return [sys.executable, "-P", outside(entry[2]), *moved]


class FakeDaemon:
    """One daemon; `images` are there, `faults` answer a path with a status once.

    `exchanges` has (method, path, query, body, status, answer) of all that was asked, for whoever knows the API's text.
    """

    def __init__(self, socket, folder, images=(), *, is_podman=False):
        self.socket = socket
        self.folder = folder
        self.images = set(images)
        self.is_podman = is_podman
        self.containers = {}
        self.asked = []
        self.exchanges = []
        self.faults = {}
        self._number = 0
        self._server = None
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._accept, str(self.socket))
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for container in self.containers.values():
            if container.is_running:
                os.killpg(container.process.pid, signal.SIGKILL)
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, h11.ProtocolError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader, writer):
        connection = h11.Connection(h11.SERVER)
        while True:
            head, body = None, b""
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(65536))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            target = urllib.parse.urlsplit(head.target.decode())
            query = dict(urllib.parse.parse_qsl(target.query))
            path = target.path.removeprefix("/v1.41")
            assert path != target.path, "no API version in the path"
            self.asked.append(f"{head.method.decode()} {path}")
            if path.endswith("/logs"):
                self.exchanges.append((head.method.decode(), path, query, None, 200, None))
                await self._follow(connection, writer, path.split("/")[2])
                return
            status, value = await self._answer(head.method.decode(), path, query, body)
            sent = json.loads(body) if body else None
            self.exchanges.append((head.method.decode(), path, query, sent, status, value))
            content = b"" if value is None else json.dumps(value).encode()
            headers = [("content-length", str(len(content))), ("content-type", "application/json")]
            writer.write(connection.send(h11.Response(status_code=status, headers=headers)))
            writer.write(connection.send(h11.Data(data=content)) + connection.send(h11.EndOfMessage()))
            await writer.drain()
            connection.start_next_cycle()

    async def _answer(self, method, path, query, body):
        if path in self.faults:
            return self.faults.pop(path), {"message": "a fault of the fake"}
        match method, path.strip("/").split("/"):
            case "GET", ["version"]:
                return 200, {"Components": [{"Name": "Podman Engine" if self.is_podman else "Engine"}]}
            case "GET", ["images", *name, "json"]:
                image = "/".join(name)
                return (200, {"Id": image}) if image in self.images else (404, {"message": f"No such image: {image}"})
            case "POST", ["containers", "create"]:
                return self._create(query["name"], json.loads(body))
            case "GET", ["containers", "json"]:
                return 200, self._list(json.loads(query["filters"])["label"])
            case _, ["containers", container, *rest]:
                found = self.containers.get(container)
                if found is None:
                    return 404, {"message": f"No such container: {container}"}
                return await self._act(method, found, rest, query)
        return 404, {"message": "page not found"}

    def _create(self, name, body):
        unknown = (set(body) - KNOWN - OF_OTHER_CLIENTS) | (set(body["HostConfig"]) - HOST_KNOWN)
        if unknown:
            return 400, {"message": f"unknown fields {unknown}"}
        if body["Image"] not in self.images:
            return 404, {"message": "No such image"}
        if any(one.name == name for one in self.containers.values()):
            return 409, {"message": f"the name {name} is in use"}
        missing = [one["Source"] for one in body["HostConfig"]["Mounts"] if not os.path.exists(one["Source"])]
        if missing:
            return 400, {"message": f"bind source path does not exist: {missing[0]}"}
        self._number += 1
        made = FakeContainer(self._number, name, body, self.folder)
        self.containers[made.id] = made
        return 201, {"Id": made.id, "Warnings": []}

    def _list(self, labels):
        wanted = dict(one.split("=", 1) for one in labels)
        return [
            {"Id": one.id, "State": "running" if one.is_running else "exited", "Labels": one.body["Labels"]}
            for one in self.containers.values()
            if wanted.items() <= one.body["Labels"].items()
        ]

    async def _act(self, method, found, rest, query):
        match method, rest:
            case "GET", ["json"]:
                return 200, {
                    "Id": found.id,
                    "Name": f"/{found.name}",
                    "Config": {"Image": found.body["Image"], "Tty": False},
                }
            case "POST", ["start"]:
                return self._start(found)
            case "POST", ["wait"]:
                await found.ended.wait()
                return 200, {"StatusCode": found.code}
            case "POST", ["stop"]:
                if not found.is_running:
                    return 304, None
                found.process.terminate()
                try:
                    await asyncio.wait_for(found.ended.wait(), int(query["t"]))
                except TimeoutError:
                    os.killpg(found.process.pid, signal.SIGKILL)
                    await found.ended.wait()
                return 204, None
            case "POST", ["kill"]:
                os.killpg(found.process.pid, signal.SIGKILL)
                return 204, None
            case "DELETE", []:
                if found.is_running:
                    os.killpg(found.process.pid, signal.SIGKILL)
                    await found.ended.wait()
                del self.containers[found.id]
                shutil.rmtree(self.folder / f"{found.id}-model", ignore_errors=True)
                return 204, None
        return 404, {"message": "page not found"}

    def _start(self, found):
        env = {key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH", "HOME")}
        env |= dict(one.split("=", 1) for one in found.body["Env"])
        with found.log.open("wb") as log:
            found.process = subprocess.Popen(
                found.argv(), env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        task = asyncio.create_task(self._reap(found))
        self._tasks.add(task)
        return 204, None

    async def _reap(self, found):
        code = await asyncio.to_thread(found.process.wait)
        found.code = 128 - code if code < 0 else code
        # What shares the container ends with its first process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(found.process.pid, signal.SIGKILL)
        found.ended.set()

    async def _follow(self, connection, writer, container):
        found = self.containers[container]
        headers = [("content-type", "application/vnd.docker.multiplexed-stream")]
        writer.write(connection.send(h11.Response(status_code=200, headers=headers)))
        done = 0
        while True:
            is_over = found.ended.is_set()
            text = found.log.read_bytes()[done:] if found.log.exists() else b""
            done += len(text)
            if text:
                frame = bytes([2, 0, 0, 0]) + len(text).to_bytes(4, "big") + text
                writer.write(connection.send(h11.Data(data=frame)))
                await writer.drain()
            if is_over:
                break
            await asyncio.sleep(0.02)
        writer.write(connection.send(h11.EndOfMessage()))
        await writer.drain()
