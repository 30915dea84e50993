import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recurra.models.native import compiling

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")


@pytest.fixture(autouse=True)
def little_source(tmp_path, monkeypatch):
    """A kernel that compiles in no time, in place of ours."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "little.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(compiling, "SOURCES", sources)
    monkeypatch.setattr(compiling, "BUILT", sources / "built")
    return sources


def test_a_library_is_built_once(tmp_path):
    """A service must not compile at every start."""
    first = compiling.build("", tmp_path / "cache")
    made = first.stat().st_mtime_ns

    assert compiling.build("", tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == made
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [first.name]
    assert ctypes.CDLL(str(first)).answer() == 42


def test_other_sources_or_instruction_sets_get_their_own_file(tmp_path, little_source):
    """A home directory may be shared by machines with other CPUs, and outlives an upgrade."""
    names = {compiling.build(level, tmp_path).name for level in compiling.LEVELS[-2:]}
    (little_source / "little.h").write_text("// new")
    names.add(compiling.build("", tmp_path).name)

    assert len(names) == len(compiling.LEVELS[-2:]) + 1


def test_a_library_that_was_built_ahead_is_used(tmp_path, little_source):
    """An image holds the libraries and no compiler."""
    ahead = compiling.build("", little_source / "built")

    assert compiling.build("", tmp_path / "cache") == ahead
    assert not (tmp_path / "cache").exists()


def test_an_error_is_raised_to_who_builds_ahead(tmp_path, monkeypatch):
    """An image build must fail where a running service falls back."""
    monkeypatch.setattr(compiling, "FLAGS", ("--no-such-flag",))

    with pytest.raises(subprocess.CalledProcessError):
        compiling.build("", tmp_path)


def test_the_file_runs_by_itself_without_torch(tmp_path, little_source):
    """The build stage of an image has Python and a compiler, and nothing else."""
    script = little_source / "compiling.py"
    script.write_text(Path(compiling.__file__).read_text())

    subprocess.run([sys.executable, "-S", "-I", str(script), str(tmp_path / "out")], check=True)

    assert len(list((tmp_path / "out").iterdir())) == len(compiling.LEVELS)
