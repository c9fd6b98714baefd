"""Errors that a user can put right: shown without a traceback."""

LOOK_UP = "look it up:    docs/troubleshooting.md"  # printed below a failure or a refusal


class UserError(Exception):
    """A setting, file or folder that the user can put right; its message says how."""
