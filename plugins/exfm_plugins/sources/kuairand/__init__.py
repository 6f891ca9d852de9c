"""Registers the data source `kuairand`: Kuaishou's videos, some of them shown at random, as a time-ordered stream."""
