"""The errors that Liveshelf raises on purpose, as one small tree.

    LiveshelfError
    ├── SettingsError       a setting is missing, unknown or out of range        exit 2
    ├── InvalidEventError   an event, catalog item or log line did not validate  exit 2
    ├── UnavailableError    a part does not answer, or not in time               exit 3
    ├── NotFoundError       an unknown shopper, item, model or version           exit 4
    ├── ConflictError       already running, port in use, not writable           exit 5
    └── CorruptError        a checkpoint, key or state file cannot be read       exit 6

Each message says what was wrong, with which value, and what to do. `exit_code` is what the `liveshelf` command exits with.
"""


class LiveshelfError(Exception):
    """Base of every error raised on purpose."""

    exit_code = 1


class SettingsError(LiveshelfError):
    exit_code = 2


class InvalidEventError(LiveshelfError):
    """Input that does not validate.

    `field` is the path of the offending field (`events[3].items[0].price`), `value` what stood there, `expected` what should have.
    """

    exit_code = 2

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field, self.value, self.expected = field, value, expected
        super().__init__(f"{field}: got {value!r}, expected {expected}")


class UnavailableError(LiveshelfError):
    exit_code = 3


class NotFoundError(LiveshelfError):
    exit_code = 4


class ConflictError(LiveshelfError):
    exit_code = 5


class CorruptError(LiveshelfError):
    exit_code = 6
