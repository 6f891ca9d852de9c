"""Registers the data source `movielens`: the released files of 1M, 100k and latest as a time-ordered stream."""
