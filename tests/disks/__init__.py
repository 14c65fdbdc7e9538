"""Power cuts on real ext4, XFS and Btrfs (see test_power_cuts.py)."""
