"""`fsinbox web`: a small site that shows an inbox, and lets whoever has its token steer it. An extra:
fsinbox[web]."""
