"""A real Podman for the length of a test: Debian's packages, borrowed, with everything it keeps in a folder of ours.

Needs root, and a kernel where containers start; skips with the reason otherwise. Nothing is installed, nothing is
pulled: the one image is put together here from Debian's Python, this source tree, and what that imports.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import h11
import httpx
import msgspec
import pytest
from tests.engine.borrowed import debian

import madang

REPOSITORY = "registry.example/madang-twin"
PYTHON = "/usr/bin/python3.11"
_PYTHON_PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "zlib1g",
    "libexpat1",
    "libgcc-s1",
)
_START_S = 60
_API = "http://daemon/v1.41"


class Podman:
    """The service, and what a test may ask of it besides.

    Attributes:
        socket: where it listens.
        image: name and digest of the one image that it has.
    """

    def __init__(self, folder, path):
        self.folder, self.socket = folder, path
        self.image = ""
        self.http = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60)

    def ask(self, method, path, **options):
        answer = self.http.request(method, _API + path, **options)
        assert answer.status_code < 400, (path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def containers(self):
        return self.ask("GET", "/containers/json", params={"all": "1"})

    def load(self, tar):
        with tar.open("rb") as file:
            params = {"fromSrc": "-", "repo": REPOSITORY, "tag": "1"}
            self.ask("POST", "/images/create", params=params, content=file)
        (found,) = self.ask("GET", "/images/json")
        self.image = found["RepoDigests"][0]

    def remove_all(self):
        for one in self.containers():
            self.ask("DELETE", f"/containers/{one['Id']}", params={"force": "1", "v": "1"})


@contextlib.contextmanager
def running_podman():
    """Run the service; skips where it cannot run."""
    if os.geteuid() != 0:
        pytest.skip("containers are started as root here, and this is another user")
    root = debian("podman", "catatonit", "netavark", with_needs=("podman", "runc"))
    # Short: a socket's path has 108 bytes, and Podman's run folder 50.
    folder = Path(tempfile.mkdtemp(prefix="mdg-", dir="/tmp"))
    environ = _configure(root, folder)
    path = folder / "podman.sock"
    argv = [root / "usr/bin/podman", "system", "service", "--time=0", f"unix://{path}"]
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environ, stdout=log, stderr=log, start_new_session=True)
    podman = Podman(folder, path)
    try:
        _wait_for(podman, process, folder / "service.log")
        podman.load(_make_image(folder))
        yield podman
        podman.remove_all()
    finally:
        podman.http.close()
        process.terminate()
        process.wait()
        _remove(folder)


def _remove(folder):
    """Remove the folder; what cleans up after the last container may still be writing there."""
    deadline_s = time.monotonic() + _START_S
    while folder.exists() and time.monotonic() < deadline_s:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _wait_for(podman, process, log):
    deadline_s = time.monotonic() + _START_S
    while True:
        if _listens(podman.socket):
            podman.ask("GET", "/version")
            return
        if process.poll() is not None:
            pytest.skip(f"podman does not run here: {log.read_text(errors='replace')[-300:]}")
        assert time.monotonic() < deadline_s, "podman does not answer"
        time.sleep(0.05)


def _listens(path):
    """Return whether somebody listens there; httpx would leave a socket open when nobody does."""
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(path)) == 0


def _configure(root, folder):
    """Write its configuration and return its environment; libraries are found by a variable."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for name, path in (("conmon", "usr/bin/conmon"), ("runc", "usr/sbin/runc")):
        wrapper = folder / name
        # Podman hands neither its libraries nor its configuration on, and conmon starts podman again at the end.
        exports = f"LD_LIBRARY_PATH={libraries} CONTAINERS_CONF={folder}/containers.conf"
        exports += f" CONTAINERS_STORAGE_CONF={folder}/storage.conf HOME={folder}"
        wrapper.write_text(f'#!/bin/sh\n{exports} exec {root / path} "$@"\n')
        wrapper.chmod(0o755)
    (folder / "containers.conf").write_text(
        f"""[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
conmon_path = ["{folder}/conmon"]
helper_binaries_dir = ["{root}/usr/lib/podman"]
init_path = "{root}/usr/bin/catatonit"
runtime = "runc"
tmp_dir = "{folder}/t"
[engine.runtimes]
runc = ["{folder}/runc"]
[containers]
seccomp_profile = "{root}/usr/share/containers/seccomp.json"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/n"
"""
    )
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/g"\nrunroot = "{folder}/r"\n'
    )
    policy = folder / ".config" / "containers" / "policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    return {
        "PATH": f"{folder}:{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}",
        "HOME": str(folder),
        "LD_LIBRARY_PATH": str(libraries),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }


def _make_image(folder):
    """Return a tar file with a root: Debian's Python 3.11, this source tree, msgspec and h11."""
    if not any(f"cpython-{version}" in msgspec._core.__file__ for version in ("311",)):
        pytest.skip("Debian's Python is 3.11, and the msgspec that is here is for another")
    root = debian("python3.11", *_PYTHON_PACKAGES)
    packages = "usr/lib/python3/dist-packages"
    tar = folder / "image.tar"
    with tarfile.open(tar, "w") as image:
        image.add(root, arcname=".")
        for module in (madang, msgspec, h11):
            source = Path(module.__file__).parent
            image.add(source, arcname=f"{packages}/{source.name}", filter=_leave_caches)
        for name in ("tmp", "dev", "proc", "sys", "madang"):
            place = tarfile.TarInfo(name)
            place.type, place.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            image.addfile(place)
    return tar


def _leave_caches(member):
    return None if "__pycache__" in member.name or "/catalog" in member.name else member
