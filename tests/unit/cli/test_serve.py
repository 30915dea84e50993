"""recurra undeploy: what it makes of its argument."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .conftest import Command


def test_an_application_is_named_by_its_job_file_without_torch(tmp_path: Path) -> None:
    """Three seconds to import for one word of the file; whatever else is in it does not keep anything running."""
    file = tmp_path / "job.yaml"
    file.write_text("name: sentiment\ntask: of another version\n")
    code = (
        "import sys; from recurra.orchestration.deploy import ServeApi; from recurra.cli.main import run; "
        "ServeApi.undeploy = lambda self, name, timeout_s: print(name); "
        f"code = run(['undeploy', {str(file)!r}, '--address', 'http://127.0.0.1:9']); print(code, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "RECURRA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["sentiment", "'sentiment'", "is", "no", "longer", "served.", "0", "False"]


def test_a_job_file_without_a_name_names_nothing(recurra: Command, tmp_path: Path) -> None:
    """The cluster is not asked for an application called None."""
    file = tmp_path / "job.yaml"
    file.write_text("task: language_model\n")
    outcome = recurra("undeploy", file, "--address", "http://127.0.0.1:9")
    assert outcome.code == 2
    assert "has no 'name'" in outcome.err and "recurra undeploy NAME" in " ".join(outcome.err.split())
