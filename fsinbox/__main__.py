"""`python -m fsinbox`: the command line."""

from .cli import main

main()
