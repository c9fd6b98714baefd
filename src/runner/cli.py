"""The command line behind run_all.sh: a run of the notebooks, or one of the other commands.

It imports no model, and `--help` needs no package.
"""

import difflib
import importlib
import sys
from typing import NamedTuple

from src.errors import UserError
from src.runner import run, status
from src.runner.lock import DISK_FULL
from src.runner.plan import Pipeline


class Command(NamedTuple):
    """A word after ./run_all.sh: the module whose `main(argv)` returns the exit status, and a line
    of help.
    """

    module: str
    help: str


COMMANDS = {
    "status": Command("src.runner.status", "which notebooks are up to date, and why not"),
    "predict": Command("src.submit.batch", "embeddings of a folder of new images"),
    "pack": Command("src.submit.pack", "models and code in one folder, for an offline machine"),
    "search": Command("src.submit.search", "the images of a prediction nearest to a text"),
    "browse": Command("src.submit.browse", "a prediction as a page on this machine"),
    "export": Command("src.submit.export", "a prediction for LanceDB, embedding-atlas or faiss"),
    "runs": Command("src.runner.runs", "the finished runs, and the leaderboard's answers"),
    "report": Command("src.runner.report", "output/report.html, and Table 1 over several runs"),
}


def main(argv: list[str] | None = None, pipeline: Pipeline | None = None) -> int:
    """Entry point of run_all.sh: the exit status.

    0 done; 1 a stage failed or the disk is full; 2 the command line, parameters, inputs or packages
    are refused; 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    pipeline = pipeline or Pipeline()

    try:
        return _dispatch(argv, pipeline)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"the package {error.name} is not installed for {sys.executable}: "
            "run without SKIP_INSTALL=1, or install requirements.txt into it",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        print(f"{error}: make room and start again; what is finished stays", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _dispatch(argv: list[str], pipeline: Pipeline) -> int:
    """Call the command that `argv` starts with; without one, run the notebooks."""
    command = argv[0] if argv and not argv[0].startswith("-") else None

    if command is None:
        return run.main(argv, pipeline, commands=_help_of_commands())
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{command!r} is not one of the commands {', '.join(COMMANDS)}{hint}")
    if command == "status":
        return status.main(argv[1:], pipeline)

    # only now, so that one command does not import what another needs
    module = importlib.import_module(COMMANDS[command].module)
    return module.main(argv[1:])


def _help_of_commands() -> str:
    """The commands for `--help`, a line each."""
    return "\n".join(
        f"  ./run_all.sh {name:9} {command.help}" for name, command in COMMANDS.items()
    )


if __name__ == "__main__":
    sys.exit(main())
