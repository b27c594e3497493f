"""What is kept on disk: run directories, checkpoints, strict JSON, files that survive a crash."""
