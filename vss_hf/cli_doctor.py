"""The command `vss-hf doctor`."""

import typer

from .cli_common import JsonFile, check_writable, write_results


def doctor(json_file: JsonFile = None) -> None:
    """Say what this machine has and lacks: versions, devices, caches. Exit code 1 if something needed is wrong."""
    from rich.console import Console

    from vss_hf.doctor import examine

    check_writable(json_file)
    found = examine()
    found.print(Console())
    write_results(found.to_dict(), json_file)
    if not found.ok:
        raise typer.Exit(1)
