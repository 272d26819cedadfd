"""Every example in README.md runs, in order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runners.servers.prism import prism_binary

ROOT = Path(__file__).parents[1]


@pytest.mark.integration
def test_readme_examples_run(tmp_path):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) >= 6
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "HEADRACE_CACHE": os.environ.get("HEADRACE_CACHE", str(Path.home() / ".cache" / "headrace")),
        "HEADRACE_CLUSTER_DIR": str(tmp_path / "cluster"),
    }
    prism_binary()  # Built once, with the caches of whoever runs this.
    for language, code in blocks:
        command = (
            ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        )
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "out" / "ledger.json").exists()


def test_the_beam_job_is_short():
    jobs = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    job = next(code for code in jobs if "beam.Pipeline" in code)
    assert (
        len([line for line in job.splitlines() if line.strip() and not line.startswith(("import", "from"))])
        <= 15
    )
