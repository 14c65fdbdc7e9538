"""Every interleaving of real producers and a real consumer, one file operation at a time (see stepper.py)."""
