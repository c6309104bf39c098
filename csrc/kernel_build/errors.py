"""The one error that the kernel build reports to its user."""


class BuildError(Exception):
    """A kernel, the manifest or the toolkit is not as needed; the message says what and where."""
