"""Small file habits that must be right everywhere: replace by rename, secrets with mode 0600, durable or not.

Owns them. Refuses to know contents. OSErrors are translated to name the path and the next step.
"""

import os
import stat
from pathlib import Path

from madang.core import Rejected, Unavailable


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, is_durable: bool = False) -> None:
    """Write `data` beside `path` and rename it over, so that a reader sees the old or the new whole.

    Args:
        path: target; its folder must exist.
        data: content.
        mode: permission bits of the new file, set before any byte is written.
        is_durable: fsync file and folder before returning.

    Raises:
        Unavailable: naming the path and the operating system's reason (full disk, missing permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if is_durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        if is_durable:
            sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Unavailable(
            f"cannot write {path}: {error.strerror}",
            next_step="free space or mend the permission of its folder",
        ) from error


def make_private_folder(folder: Path, *, is_ours_alone: bool = True) -> None:
    """Make a folder that nobody else on this machine may look into, or close one that is there.

    One that belongs to another user is left as it is, since only its owner can close it: what is put there has a mode
    of its own.

    Args:
        folder: with its parents.
        is_ours_alone: False for one that may hold other things too: it is left as it is when it is there.

    Raises:
        Rejected: everybody may write there, as in /tmp: it is no folder of ours.
        Unavailable: it cannot be made or closed, naming it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if not is_ours_alone:
            return
        if status.st_mode & stat.S_ISVTX:
            raise Rejected(f"{folder} is shared by everybody on this machine", next_step="name a folder inside of it")
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            folder.chmod(status.st_mode & 0o700)
    except OSError as error:
        raise Unavailable(
            f"cannot make folder {folder}: {error.strerror}",
            next_step="choose another place, or mend the permission of its parent",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_secret(path: Path, data: bytes) -> None:
    """Write a secret with mode 0600, durably; raises Unavailable naming the path."""
    replace_file(path, data, mode=0o600, is_durable=True)


def read_secret(path: Path) -> bytes:
    """Return a secret's bytes without surrounding white space; raises Unavailable when missing or too open."""
    try:
        status = path.stat()
        data = path.read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read secret {path}: {error.strerror}") from error
    if status.st_mode & 0o077:
        raise Unavailable(
            f"secret {path} is open to others (mode {status.st_mode & 0o777:o})",
            next_step=f"chmod 600 {path}",
        )
    return data.strip()
