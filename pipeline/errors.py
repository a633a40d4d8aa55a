"""What can go wrong by a user's hand, as one small tree; each error says what to do about it.

GmsLmmError
├── UsageError      2  words on the command line that do not fit together
├── InputError      3  bad input data: an image, a mask, a split file, a checkpoint of others
├── ArtefactError   4  an artefact of ours that is missing, stale or of another kind
└── CheckError      5  a check that was asked for has failed

Exit code 1 is left to our own bugs, which keep their traceback.
"""


class GmsLmmError(Exception):
    """A user's mistake: what, where and how much in `message`, what to do about it in `fix`."""

    exit_code = 1

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message, fix)  # both, so that it can come from another process
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\nfix: {self.fix}"


class UsageError(GmsLmmError):
    """Options or settings that do not fit together."""

    exit_code = 2


class InputError(GmsLmmError):
    """Bad input data; nothing has been written, unless the message says so."""

    exit_code = 3


class ArtefactError(GmsLmmError):
    """A manifest, store or run that is missing, stale or of another kind."""

    exit_code = 4


class CheckError(GmsLmmError):
    """A check that was asked for has failed."""

    exit_code = 5
