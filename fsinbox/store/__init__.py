"""The format on disk: folders, names, numbers, and every step that changes them."""
