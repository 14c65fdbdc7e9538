"""`fsinbox consume`: runs handlers for elements. Knows Inbox, not the folders."""
