"""ddp: every process keeps the whole model."""
