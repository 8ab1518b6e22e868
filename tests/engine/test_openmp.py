"""llama.cpp's OpenMP run-time on a machine that has none."""

import ctypes
import os
import sys

import pytest

from madang.core import Fault
from madang.engine.llama_cpp.openmp import ensure_openmp, find_bundled


def test_a_machine_that_has_it_is_left_alone(tmp_path):
    ensure_openmp(tmp_path, is_loadable=lambda: True, execute=lambda *_: pytest.fail("started over"))
    assert list(tmp_path.iterdir()) == []


def test_the_copy_of_another_wheel_can_be_loaded():
    copy = find_bundled()
    if copy is None:
        pytest.skip("the wheel that carries a copy is not installed")
    ctypes.CDLL(str(copy))


def test_without_it_the_program_starts_over_with_a_copy_in_its_search_path(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    copy = tmp_path / "libgomp-abc.so.1.0.0"
    copy.touch()
    calls = []
    for _ in range(2):  # a second launch in the same folder finds the link already there
        ensure_openmp(
            tmp_path, is_loadable=lambda: False, bundled=lambda: copy, execute=lambda *call: calls.append(call)
        )
    program, argv, env = calls[1]
    assert (program, argv) == (sys.executable, sys.orig_argv)
    assert env["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:/elsewhere"
    assert os.readlink(tmp_path / "lib" / "libgomp.so.1") == str(copy)


@pytest.mark.parametrize("has_copy", [False, True])
def test_what_cannot_be_mended_names_the_package_to_install(tmp_path, monkeypatch, has_copy):
    if has_copy:
        monkeypatch.setenv("MADANG_OPENMP_FOLDER", "/tried/before")
    with pytest.raises(Fault, match=r"libgomp\.so\.1") as caught:
        ensure_openmp(
            tmp_path,
            is_loadable=lambda: False,
            bundled=lambda: tmp_path / "copy" if has_copy else None,
            execute=lambda *_: pytest.fail("started over"),
        )
    assert "apt-get install libgomp1" in caught.value.next_step
