"""Kills and errors at every system call: programs.py says of which programs, test_*.py do it."""
