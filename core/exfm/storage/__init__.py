"""The run's folder: workspace, commits, manifests, snapshots and their retention."""
