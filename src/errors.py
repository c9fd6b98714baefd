"""Errors that a user can put right: shown without a traceback."""


class UserError(Exception):
    """A setting, file or folder that the user can put right; its message says how."""
