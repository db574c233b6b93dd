"""Text from guests, registries and archives, made harmless for a terminal.

Control characters, escape sequences, direction marks and broken UTF-8 come out as visible escapes.
"""


def _visible(character: str) -> str:
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:  # a byte that was no UTF-8, kept by surrogateescape
        return f"\\x{point - 0xDC00:02x}"
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def escape(text: str) -> str:
    """Return `text` for one cell or line: every unprintable character as a visible escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _visible(c) for c in text)


def escape_lines(text: str) -> str:
    """Return `text` of several lines: newlines stay, each further line indented by two."""
    return "\n  ".join(escape(line.rstrip("\r")) for line in text.rstrip().split("\n"))
