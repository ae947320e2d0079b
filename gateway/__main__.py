"""Starts the gateway: `python -m gateway`, with settings from CLAW_* variables."""

import asyncio

import uvloop

from claw_r1.process import main
from claw_r1.settings import GatewaySettings
from gateway.server import serve
from gateway.workers import serve_by_workers


async def run(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """One gateway, or several behind one port."""
    await (serve if settings.workers == 1 else serve_by_workers)(settings, stop)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    main("gateway", GatewaySettings, run)
