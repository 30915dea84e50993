import shutil
import warnings

import pytest

from recurra.models.native import compiling, library

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")


def test_without_a_compiler_there_is_one_clear_line_and_no_error(tmp_path, monkeypatch):
    """Kernels are a matter of speed alone: a laptop without g++ must train, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler.*same results more slowly\. Install g\+\+"):
        assert library.kernels.__wrapped__() is None


@needs_compiler
def test_what_the_compiler_says_is_shown(tmp_path, monkeypatch):
    """The reason is what the user needs to act."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "FLAGS", ("--no-such-flag",))

    with pytest.warns(RuntimeWarning, match="the compiler said: .*no-such-flag"):
        assert library.kernels.__wrapped__() is None


def test_kernels_can_be_switched_off(monkeypatch):
    """To compare, or where a security policy forbids fresh executables."""
    monkeypatch.setenv("RECURRA_NATIVE", "0")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.kernels.__wrapped__() is None
