"""What is wrong with one document."""


class Failure(dict[str, str]):
    """One failure: ``code`` (stable), ``pointer`` (JSON pointer, RFC 6901; "" for the whole document), ``message``.

    The message says what was expected and which type or field was found; it never holds a value from the document.
    """

    def __init__(self, code: str, pointer: str, message: str) -> None:
        super().__init__(code=code, pointer=pointer, message=message)
