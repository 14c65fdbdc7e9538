"""Which boot of the kernel this is."""

import sys


def boot_tag() -> str:
    """Return a tag of 8 characters that changes with every boot. Raises OSError.

    Source: /proc/sys/kernel/random/boot_id, in random(4).
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
            return file.read(8).decode("ascii")
    except FileNotFoundError:
        if sys.platform == "darwin":  # pragma: no cover - macOS only
            return _boot_session()
        raise OSError(
            "no /proc/sys/kernel/random/boot_id here: mount /proc, or this system is not supported"
        ) from None


def _boot_session() -> str:  # pragma: no cover - macOS only
    """The same for macOS, from sysctl kern.bootsessionuuid."""
    import ctypes

    size = ctypes.c_size_t(64)
    text = ctypes.create_string_buffer(64)
    if ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", text, ctypes.byref(size), None, 0):
        raise OSError("sysctl kern.bootsessionuuid failed")
    return text.value[:8].decode("ascii").lower()
