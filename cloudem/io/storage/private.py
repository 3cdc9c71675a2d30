"""Files and folders in places where others may write: what they put there under our names is not used.

Whoever may write into a folder can put a link there, so that a file of ours is written through it into any file that
we may write; or a pipe, on which we would wait for ever. So a file of a known name is opened only if it is a file, and
one that is being written has a name that nobody can know beforehand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from cloudem.errors import StorageError

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_ENDING = ".partial"


def open_file(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file of ours under a name that others may have used before us; return its descriptor.

    Parameters
    ----------
    path
        The file.
    flags, mode
        As for `os.open`; links are not followed, and nothing is waited for.

    Raises
    ------
    StorageError
        It is a link, a pipe, a socket, a device or a folder, or one file under several names.
    OSError
        It cannot be opened.
    """
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EOPNOTSUPP):
            raise _is_no_file(path, path.lstat()) from None
        raise
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(file)
        raise _is_no_file(path, status)
    return file


def private_folder(path: Path) -> Path:
    """Return a folder that nobody else may write to, made (0700) if it is not there.

    Raises
    ------
    StorageError
        It is a link or no folder, or somebody else's, or others may write to it; or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; choose another folder") from None
    if not stat.S_ISDIR(status.st_mode):
        raise StorageError(f"{path} is {_kind(status)}; give a folder of your own")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        whose = "is somebody else's" if status.st_uid != os.geteuid() else "can be written by others"
        raise StorageError(f"{path} {whose}; give a folder of your own (chmod 700), or none")
    return path


@contextlib.contextmanager
def partial_file(final: Path) -> Iterator[int]:
    """Give the descriptor of a new file that takes the place of another when the block ends well.

    Until then it has a name that nobody knows beforehand, and is locked; those of writers that were killed, which hold
    no lock any more, are removed.
    """
    _remove_left(final)
    partial = partial_name(final)
    partial.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # not on this file system
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
        partial.replace(final)
    finally:
        os.close(file)
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def held_folder(final: Path) -> Iterator[Path]:
    """Give a new folder beside another, of a name that nobody knows beforehand, and hold its lock.

    It is for the caller to rename or to remove it; those of writers that were killed are removed.
    """
    _remove_left(final)
    partial = partial_name(final)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    file = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    finally:
        os.close(file)


def partial_name(final: Path) -> Path:
    """Return a new name for what will become a file or folder of another name, in the same folder."""
    # the kernel takes names of up to 255 bytes
    name = os.fsdecode(os.fsencode(final.name)[:200])
    return final.with_name(f".{name}.{secrets.token_hex(8)}{_ENDING}")


def _remove_left(final: Path) -> None:
    """Remove what killed writers left of a file or folder: ours, and locked by nobody."""
    import shutil

    start = partial_name(final).name[: -len(_ENDING) - 16]
    try:
        left = [e for e in os.scandir(final.parent) if e.name.startswith(start) and e.name.endswith(_ENDING)]
    except OSError:
        return
    for entry in left:
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            file = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink()
            finally:
                os.close(file)


def _is_no_file(path: Path, status: os.stat_result) -> StorageError:
    return StorageError(
        f"{path} is {_kind(status)}, where cloudem keeps a file of its own; find out who put it there, and remove it"
    )


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a file" if status.st_nlink < 2 else "a file of several names")
