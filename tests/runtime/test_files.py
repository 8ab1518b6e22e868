"""Folders that are for one user alone."""

import os

import pytest

from madang.core import Rejected, Unavailable
from madang.runtime.files import make_private_folder


def mode(path):
    return path.stat().st_mode & 0o7777


def test_a_folder_is_made_closed_and_an_open_one_is_closed(tmp_path):
    before = os.umask(0)
    try:
        make_private_folder(tmp_path / "a" / "b")
        assert mode(tmp_path / "a" / "b") == 0o700
        for open_mode, closed in ((0o755, 0o700), (0o2775, 0o2700), (0o500, 0o500)):
            folder = tmp_path / f"{open_mode:o}"
            folder.mkdir()
            folder.chmod(open_mode)
            make_private_folder(folder)
            assert mode(folder) & 0o777 == closed & 0o777
        folder = tmp_path / "755"
        folder.chmod(0o755)
        make_private_folder(folder, is_ours_alone=False)
        assert mode(folder) == 0o755, "it may hold what others need"
        make_private_folder(tmp_path / "c", is_ours_alone=False)
        assert mode(tmp_path / "c") == 0o700
    finally:
        os.umask(before)


def test_what_cannot_be_ours_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot make folder"):
        make_private_folder(tmp_path / "file" / "x")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    with pytest.raises(Rejected, match="shared by everybody"):
        make_private_folder(tmp_path / "shared")
    assert mode(tmp_path / "shared") == 0o1777
