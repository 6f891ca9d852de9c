"""Runs the stream loop, which predicts and then trains, window by window."""
