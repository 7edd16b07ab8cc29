"""The command line."""

from __future__ import annotations


def main() -> None:
    """Run the command line; it ends the process with the command's exit code."""
    from consistory_ray.cli.app import main as run  # as late as possible: importing the package stays light

    run()
