"""Hostile surroundings: broken disks, lost rights, forged and foreign things, and four questions asked of
each."""
