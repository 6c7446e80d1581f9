"""The verb that plans: estimate."""

from typing import Annotated

import typer

from cli_options import STANDARD, Address, Config, Json, Override, on_address, settings_of
from cli_process import errors
from cli_process import print_object as _print
from cli_process import say_to as _say


def estimate(
    rates: Annotated[
        str, typer.Option(help="A record of benchmarks/gpu.py: its device computes, in place of this machine's.")
    ] = "",
    price: Annotated[float | None, typer.Option(min=0, help="Of one device for an hour.")] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="That the probe may take, about.")] = 20.0,
    images: Annotated[int, typer.Option(min=0, help="So many made photographs, in place of the source's.")] = 0,
    config: Config = STANDARD,
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Say what the run file will take: hours, cores, bytes and price, from a short probe of this machine."""
    with errors():
        settings = on_address(settings_of(config, set_), address)
        from pipeline.commands.estimate import estimate as foresee

        result = foresee(settings, _say(json_), rates=rates, price=price, seconds=seconds, images=images)
        _print(result, json_)
