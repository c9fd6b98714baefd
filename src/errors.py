"""Errors that a user can put right: shown without a traceback."""


class UserError(Exception):
    """Something the user can put right: shown without a traceback."""
