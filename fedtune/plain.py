"""Words of others, made fit for logs and terminals."""


def plain(text: str) -> str:
    """`text` as one line without control characters: it can neither begin a line of its own nor
    steer a terminal.
    """
    return "".join(c if c.isprintable() else " " for c in text)
