"""What tests borrow for a moment: Debian's, Python's and npm's packages, unpacked into the cache, never installed.

Skips, with the reason, where there is no apt, no index or no network.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from madang.node.cache import default_cache_dir

_DOWNLOAD_S = 240


def borrowed_folder(name):
    """Return a folder of that name beside the cache of artifacts."""
    return default_cache_dir(os.environ).parent / "borrowed" / name


def debian(name, *packages, with_needs=()):
    """Return the root under which Debian packages are unpacked; those in `with_needs` with what they need and lack."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("this machine has no apt: Debian's packages cannot be borrowed")
    folder = borrowed_folder(name)
    if (folder / "whole").exists():
        return folder / "root"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    needed = [*packages]
    if with_needs:
        wanted = _run(["apt-get", "install", "-s", "-y", "--no-install-recommends", *with_needs], folder)
        needed += [line.split()[1] for line in wanted.splitlines() if line.startswith("Inst ")] or with_needs
    _run(["apt-get", "download", "-q", *needed], folder)
    for package in folder.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(folder / "root")], folder)
        package.unlink()
    (folder / "whole").touch()
    return folder / "root"


def wheels(*requirements):
    """Return a folder with the contents of wheels, without their dependencies."""
    folder = borrowed_folder("-".join(requirements).replace("=", ""))
    if (folder / "whole").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    _run([*pip, "--disable-pip-version-check", "--retries", "1", "-d", str(folder), *requirements], folder)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
    (folder / "whole").touch()
    return folder


def npm(name, version, sha256):
    """Return the folder with the contents of an npm package whose tarball has that hash; its scripts do not run."""
    if shutil.which("npm") is None:
        pytest.skip("this machine has no npm")
    folder = borrowed_folder(f"npm-{name.replace('/', '-')}-{version}")
    if (folder / "whole").exists():
        return folder / "package"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _run(["npm", "pack", "--silent", f"{name}@{version}"], folder)
    (tarball,) = folder.glob("*.tgz")
    assert hashlib.sha256(tarball.read_bytes()).hexdigest() == sha256, f"{tarball.name} is another one"
    with tarfile.open(tarball) as archive:
        archive.extractall(folder, filter="data")
    tarball.unlink()
    (folder / "whole").touch()
    return folder / "package"


def _run(argv, folder):
    try:
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=_DOWNLOAD_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{argv[0]} took over {_DOWNLOAD_S} s")
    if done.returncode:
        pytest.skip(f"{' '.join(argv[:2])} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
