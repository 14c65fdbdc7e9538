"""For those who test their handlers."""
