"""GEM: sequences and tokens learned in turns, domain by domain, after Meta's ads foundation model."""
