"""`python -m exfm` is `exfm`: what torchrun needs."""

from exfm.cli.main import main

main()
