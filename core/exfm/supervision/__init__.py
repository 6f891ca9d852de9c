"""The data augmentation service: what a run stores, commits and joins."""
