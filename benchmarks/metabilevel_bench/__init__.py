"""The library's own benchmarks; every module holds the workloads of one family."""

from pathlib import Path

PEERS = Path(__file__).parent / "peers" / "serve.py"
