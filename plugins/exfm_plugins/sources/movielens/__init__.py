"""MovieLens: the released files of 1M, 100k and latest as a time-ordered stream."""
