"""`fsinbox watch`: a producer that queues each file of a folder when it is created, changed or removed.

Level-triggered: what counts is the difference between the tree as it is and what was queued last (`state`).
Events only say where to look first; a rescan finds what no event told.
"""
