"""A server for sftp:// in this process, on a folder, for one user with a password."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
from paramiko import SFTP_OK, SFTPAttributes, SFTPHandle, SFTPServer, SFTPServerInterface

USER, PASSWORD = "me", "hunter2"


class _File(SFTPHandle):
    def stat(self) -> SFTPAttributes:
        return SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))


class _Folder(SFTPServerInterface):
    root: Path

    def _local(self, path: str) -> Path:
        return self.root / self.canonicalize(path).lstrip("/")

    def list_folder(self, path: str) -> list[SFTPAttributes] | int:
        try:
            return [SFTPAttributes.from_stat(each.stat(), each.name) for each in self._local(path).iterdir()]
        except OSError as error:
            return SFTPServer.convert_errno(error.errno)

    def stat(self, path: str) -> SFTPAttributes | int:
        try:
            return SFTPAttributes.from_stat(self._local(path).stat())
        except OSError as error:
            return SFTPServer.convert_errno(error.errno)

    lstat = stat

    def open(self, path: str, flags: int, attr: SFTPAttributes) -> SFTPHandle | int:
        try:
            number = os.open(self._local(path), flags, 0o600)
        except OSError as error:
            return SFTPServer.convert_errno(error.errno)
        handle = _File(flags)
        handle.filename = path
        handle.readfile = handle.writefile = os.fdopen(number, "wb" if flags & os.O_WRONLY else "rb")
        return handle

    @staticmethod
    def _done(act: Callable[[], object]) -> int:
        try:
            act()
        except OSError as error:
            return SFTPServer.convert_errno(error.errno)
        return SFTP_OK

    def remove(self, path: str) -> int:
        return self._done(self._local(path).unlink)

    def rename(self, oldpath: str, newpath: str) -> int:
        return self._done(lambda: self._local(oldpath).rename(self._local(newpath)))

    posix_rename = rename

    def mkdir(self, path: str, attr: SFTPAttributes) -> int:
        return self._done(self._local(path).mkdir)

    def rmdir(self, path: str) -> int:
        return self._done(self._local(path).rmdir)

    def chattr(self, path: str, attr: SFTPAttributes) -> int:
        return SFTP_OK


class _Door(paramiko.ServerInterface):
    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if (username, password) == (USER, PASSWORD) else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "password"


@contextmanager
def serve(root: Path) -> Iterator[int]:
    """Serve a folder, and give the port."""
    key = paramiko.ECDSAKey.generate()
    folder = type("Folder", (_Folder,), {"root": root})
    transports: list[paramiko.Transport] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # closed
                    return
                transports.append(transport := paramiko.Transport(connection))
                transport.add_server_key(key)
                transport.set_subsystem_handler("sftp", SFTPServer, folder)
                transport.start_server(server=_Door())

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            for transport in transports:
                transport.close()
