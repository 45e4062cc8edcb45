"""``python -m mip_lightning.report``: print a table of test runs."""

import argparse
import sys
from pathlib import Path

from mip_lightning.errors import UsageError
from mip_lightning.report.table import summarize


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mip_lightning.report",
        description="Print a Markdown table of a test metric averaged over gamma.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders that `test` wrote")
    parser.add_argument("--metric", default="accuracy", help="default: %(default)s")
    parser.add_argument(
        "--by",
        nargs="+",
        default=["model.init_args.formulation"],
        help="keys of the configuration that tell rows apart; tests of one row may differ in their"
        " seeds only; default: %(default)s",
    )
    args = parser.parse_args()
    try:
        print(summarize(args.folders, args.metric, args.by))
    except UsageError as error:
        sys.exit(f"mip_lightning.report: error: {error}")


if __name__ == "__main__":
    main()
