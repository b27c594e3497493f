"""Many devices: in a process of its own, whose CPU passes for eight."""

import os
import subprocess
import sys
from pathlib import Path


def test_eight_devices():
    checks = Path(__file__).with_name("eight_devices.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(checks)]
    done = subprocess.run(command, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
