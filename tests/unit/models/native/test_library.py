import ctypes
import shutil
import subprocess
import warnings

import pytest

from recurra.models.native import library


@pytest.fixture
def little_source(tmp_path, monkeypatch):
    """A kernel that compiles in no time, in place of ours."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "little.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(library, "SOURCES", sources)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")


@needs_compiler
def test_a_library_is_built_once(tmp_path, little_source):
    """A service must not compile at every start."""
    first = library.build(directory=tmp_path / "cache")
    made = first.stat().st_mtime_ns

    assert library.build(directory=tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == made
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [first.name]
    assert ctypes.CDLL(str(first)).answer() == 42


@needs_compiler
def test_every_instruction_set_gets_its_own_file(tmp_path, little_source):
    """A home directory may be shared by machines with other CPUs; an image is built before its CPU is known."""
    names = {library.build(level, tmp_path).name for level in ("x86-64-v3", "")}

    assert len(names) == 2


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
    monkeypatch.setattr(library, "FLAGS", ("--no-such-flag",))

    with pytest.warns(RuntimeWarning, match="the compiler said: .*no-such-flag"):
        assert library.kernels.__wrapped__() is None


def test_kernels_can_be_switched_off(monkeypatch):
    """To compare, or where a security policy forbids fresh executables."""
    monkeypatch.setenv("RECURRA_NATIVE", "0")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.kernels.__wrapped__() is None


def test_a_build_error_is_a_subprocess_error_to_who_builds_ahead(tmp_path, monkeypatch):
    """An image build must fail loudly where a running service falls back."""
    monkeypatch.setattr(library, "FLAGS", ("--no-such-flag",))
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")

    with pytest.raises(subprocess.CalledProcessError):
        library.build(directory=tmp_path)
