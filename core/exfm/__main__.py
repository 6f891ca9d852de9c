"""Runs the command line as `python -m exfm`, because torchrun starts a module and not a script."""

from exfm.cli.main import main

main()
