"""What only an inbox that several hosts share needs."""
