"""The command line: one module for each command, with ``add_arguments`` and ``run``.

Exit status: 0; 1 where a check failed; 2 where the user's request cannot be met; 130 after Ctrl-C;
141 where the output's reader has gone.
"""

import argparse
import importlib
import os
import sys

from .._version import __version__
from ._console import UserError

COMMANDS = {
    "demo": "accelerate a model, prove it block by block, and time it beside the original",
    "info": "versions, hardware, and which backends can run here or why not",
    "explain": "what accelerate would do with a model, and why",
    "verify": "an accelerated model against its original, forward and backward",
    "gradcheck": "every op's gradients against finite differences, in float64",
    "bench": "every kernel against unfused and compiled PyTorch",
    "compare": "two bench files: what became faster and what slower",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m shiftmlp")
    parser.add_argument("--version", action="version", version=f"shiftmlp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv[:1]:
            # Only the command that is asked for is imported.
            module = importlib.import_module(f".{name}", __name__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
