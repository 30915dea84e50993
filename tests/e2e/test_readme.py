"""What the README tells a reader to type works, typed as it stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .readme import Block, blocks_of

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = blocks_of((ROOT / "README.md").read_text(encoding="utf-8"))


def test_blocks_are_taken_in_order_and_prose_is_left_alone() -> None:
    """A runner that finds nothing passes everything."""
    page = """
```bash
not run
```
<!-- test:begin -->
Text.
```bash
recurra up
```
```yaml job.yaml
name: a
```
```json
{"only": "shown"}
```
<!-- test:end -->
<!-- test:begin -->
```bash
recurra down
```
<!-- test:end -->
"""
    assert blocks_of(page) == [Block("recurra up\n"), Block("name: a\n", "job.yaml"), Block("recurra down\n")]


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.skipif(not BLOCKS, reason="README.md has no part between test:begin and test:end")
def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    """The first five minutes decide whether there is a sixth."""
    script = ["set -euo pipefail"]
    for block in BLOCKS:
        if block.file is None:
            script.append(block.text)
        else:
            script.append(f"cat > {block.file} <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "RECURRA_"))
    }
    environment |= {
        "RECURRA_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "80",
    }
    sandbox = tmp_path / "here"
    sandbox.mkdir()
    for name in ("jobs", "deploy", "k8s"):
        (sandbox / name).symlink_to(ROOT / name)
    shell = ["bash", "-c", "\n".join(script)]
    try:
        done = subprocess.run(shell, cwd=sandbox, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    finally:
        subprocess.run(
            [sys.executable, "-m", "recurra.cli.main", "down"], env=environment, check=True, capture_output=True
        )
