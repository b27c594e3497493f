"""Many devices: in a process of its own, whose CPU passes for eight."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metabilevel.errors import InputError
from metabilevel.storage.config import Environment, decode


def test_eight_devices():
    checks = Path(__file__).with_name("eight_devices.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(checks)]
    done = subprocess.run(command, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_from_before_devices_were_counted_is_read():
    environment = {"versions": {}, "git_commit": None, "device": "cpu", "x64": False, "date": "2026-01-01"}
    assert decode(Environment, environment, "config.json").devices == 1
    with pytest.raises(InputError, match=r"config\.json\.date is missing"):
        decode(Environment, {name: value for name, value in environment.items() if name != "date"}, "config.json")
