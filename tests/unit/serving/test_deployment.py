"""The application as Ray Serve builds it."""

import subprocess
import sys

BUILT = """
import sys
from recurra.serving.deployment import build_app
build_app({"name": "a", "model": "m", "registry": "s3://b/registry", "serve": {"replicas": [0, 2]}})
sys.exit("torch" in sys.modules)
"""


def test_it_is_built_without_torch():
    """Each deployment waits for a process that does it."""
    assert subprocess.run([sys.executable, "-c", BUILT], check=False).returncode == 0
