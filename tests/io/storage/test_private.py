"""What others put under names of ours is not used, and what killed writers left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloudem.errors import StorageError
from cloudem.io.images.cache import ImageCache
from cloudem.io.storage.files import new_file
from cloudem.io.storage.outputs import new_folder
from cloudem.io.storage.private import partial_name, private_folder


def test_a_new_file_is_written_through_no_link(tmp_path: Path) -> None:
    precious, place = tmp_path / "precious", tmp_path / "m.mrc"
    precious.write_text("kept")
    for name in ("m.mrc.partial", ".m.mrc.partial", "m.mrc"):
        (tmp_path / name).symlink_to(precious)
    with new_file(place) as file:
        (partial,) = [path.name for path in tmp_path.glob(".m.mrc.*.partial")]
        assert partial != partial_name(place).name  # nobody can know it
        file.write(b"a map")
    assert (place.is_symlink(), place.read_bytes(), precious.read_text()) == (False, b"a map", "kept")


def killed_while_writing(code: str, cwd: Path) -> None:
    modules = ("files import new_file", "outputs import new_folder")
    imports = "; ".join(f"from cloudem.io.storage.{each}" for each in modules)
    line = f"import os, signal; {imports}\n{code}"
    ended = subprocess.run([sys.executable, "-c", line], cwd=cwd, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("maker", [new_file, new_folder])
def test_what_a_killed_writer_left_is_removed_and_what_others_write_is_not(maker, tmp_path: Path) -> None:
    killed_while_writing(f"with {maker.__name__}('out'): os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    mine = tmp_path / ".out.txt"
    mine.touch()
    second = maker(str(tmp_path / "out")) if maker is new_file else new_file(tmp_path / "out.2")
    with maker(str(tmp_path / "out")), second:
        assert len(list(tmp_path.iterdir())) == 3
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "out.2", ".out.txt"}


def test_a_folder_of_our_own_is_ours_alone(tmp_path: Path) -> None:
    made = private_folder(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    assert private_folder(made) == made
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(StorageError, match="is a link; give a folder of your own"):
        private_folder(tmp_path / "link")
    made.chmod(0o777)
    with pytest.raises(StorageError, match="can be written by others"):
        private_folder(made)
    if os.geteuid() == 0:
        made.chmod(0o700)
        os.chown(made, 65534, 65534)
        with pytest.raises(StorageError, match="is somebody else's"):
            private_folder(made)


def test_a_cache_is_not_kept_where_others_may_write(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images").chmod(0o777)
    with pytest.raises(OSError, match="can be written by others"):
        ImageCache(tmp_path)
