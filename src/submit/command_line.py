"""What the commands for new images share: options of one meaning, and how a refusal is told."""

import argparse
import sys
from collections.abc import Callable

from src.errors import UserError


def add_result(parser: argparse.ArgumentParser) -> None:
    """The result of predict that the command works on, and where its images are."""
    parser.add_argument("file", metavar="FILE.parquet", help="a result of ./run_all.sh predict")
    parser.add_argument(
        "--images", metavar="FOLDER", help="where the images are, if they were moved"
    )


def add_output(parser: argparse.ArgumentParser, purpose: str = "") -> None:
    """The folder whose models are used; `purpose` begins the help."""
    parser.add_argument(
        "--output",
        default="output",
        metavar="FOLDER",
        help=f"{purpose}a trained output folder (default: %(default)s)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The engine of the search."""
    parser.add_argument(
        "--engine", default="auto", help="of the search: auto, cuml or faiss (default: %(default)s)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """The device of the models."""
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")


def exit_status(
    command: Callable[[argparse.Namespace], None],
    options: argparse.Namespace,
    tell: Callable[[str], str] = str,
) -> int:
    """Run `command`: 0 done, 2 refused, for the reason that `tell` prepares for the terminal."""
    try:
        command(options)
    except (UserError, FileNotFoundError, ValueError) as problem:
        print(tell(str(problem)), file=sys.stderr)
        return 2
    return 0
