"""Provides the data augmentation service, which stores, commits and joins a run's supervision."""
