"""hsdp: dense layers are sharded inside groups of processes, and the groups are copies of each other."""
