"""The one taker: what it knows, and what it does."""
