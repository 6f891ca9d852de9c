"""Registers the data source `kuaivideo`: the released interactions with micro-videos as a time-ordered stream."""
