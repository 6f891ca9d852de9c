"""The stream loop: predict, then train, window by window."""
