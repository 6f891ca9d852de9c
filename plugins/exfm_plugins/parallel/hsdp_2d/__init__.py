"""hsdp_2d: dense layers as in `hsdp`, tables sharded inside groups of processes and averaged over the groups."""
