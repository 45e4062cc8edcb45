"""Where the command ``mip-lightning`` begins; ``python -m mip_lightning`` is the same.

What needs neither torch nor Lightning is answered here, for importing them takes seconds.
"""

import platform
import sys
from importlib.metadata import version

from mip_lightning import __version__

SUBCOMMANDS = {
    "fit": "Train, validating after each epoch.",
    "validate": "Sweep gamma over the validation data.",
    "test": "Sweep gamma over the test data.",
    "predict": "Predict, at given gamma if the task asks for it.",
    "export": "Write the ordinary network at each gamma, which no longer needs this library.",
    "select-gamma": "Find the best gamma on the validation data.",
}

HELP = f"""\
usage: mip-lightning [-h] [--version] [-c CONFIG] [--print_config [=flags]] SUBCOMMAND ...

Train hypernetworks with Magnitude Invariant Parametrizations (MIP).

options:
  -h, --help            Show this help message and exit.
  --version             Print version and exit.
  -c CONFIG, --config CONFIG
                        Path to a configuration file in json or yaml format.
  --print_config [=flags]
                        Print the configuration after applying all other
                        arguments and exit. Flags: skip_default, skip_unset.

subcommands (mip-lightning SUBCOMMAND --help tells more):
{"".join(f"  {name:<22}{text}{chr(10)}" for name, text in SUBCOMMANDS.items())}"""


def versions() -> str:
    """The versions that a report of a problem needs, a line each."""
    packages = ("torch", "lightning", "torchmetrics", "jsonargparse")
    lines = [f"mip-lightning {__version__}", f"python {platform.python_version()}"]
    return "\n".join(lines + [f"{name} {version(name)}" for name in packages])


def main() -> None:
    """Run the command line with the arguments of the process."""
    if sys.argv[1:] == ["--version"]:
        print(versions())
    elif sys.argv[1:] in (["--help"], ["-h"]):
        print(HELP, end="")
    else:
        from mip_lightning.cli.main import main as run

        run()


if __name__ == "__main__":
    main()
