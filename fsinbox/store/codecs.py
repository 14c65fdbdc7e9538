"""Values <-> payloads: JSON, text or bytes. Never pickle: a payload may come from anyone who can write a
file."""

from .errors import InvalidPayload

CODECS = ("json", "text", "bytes")


def check_codec(codec: str) -> str:
    """Return `codec` if it is one of CODECS. Raises ValueError."""
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}: use one of {', '.join(CODECS)}")
    return codec


def encode(codec: str, key: str, value: object) -> bytes:
    """Return the payload for a value. Raises InvalidPayload."""
    if codec == "json":
        import json  # not at the top: it costs a producer of bytes or text more than an add

        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidPayload(
                f"the value for key {key!r} is not JSON: {error}: convert it first, or use codec='text' or "
                "'bytes'"
            ) from error
    if codec == "text":
        if not isinstance(value, str):
            raise InvalidPayload(
                f"codec 'text' takes str, the value for key {key!r} is {type(value).__name__}"
            )
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidPayload(
                f"the value for key {key!r} is not text: {error}: use codec='bytes'"
            ) from error
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise InvalidPayload(
            f"codec 'bytes' takes bytes, the value for key {key!r} is {type(value).__name__}"
        )
    return bytes(value)


def decode(codec: str, key: str, data: bytes) -> object:
    """Return the value of a payload. Raises InvalidPayload."""
    if codec == "bytes":
        return data
    try:
        text = data.decode("utf-8")
        if codec == "text":
            return text
        import json

        return json.loads(text)
    except (ValueError, RecursionError) as error:
        start = data[:40]
        raise InvalidPayload(
            f"the payload for key {key!r} is not {'JSON' if codec == 'json' else 'UTF-8 text'}: {error}; "
            f"it has {len(data)} bytes and starts {start!r}: use another codec (json, text or bytes), or "
            "mend what writes it"
        ) from error
