"""Registers the data source `yambda`: the listens of Yandex Music with their users' earlier events."""
