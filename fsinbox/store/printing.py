"""Text from a file, made safe for a terminal."""


def clean(raw: bytes) -> str:
    """Return the text of a file so that it cannot play tricks on a terminal."""
    text = raw.decode("utf-8", "replace").strip()
    return "".join(character if character.isprintable() else "?" for character in text)
