"""`claw keys`: make a key for a person or a program, and see what a key says."""

import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from claw_r1 import keys
from claw_r1.cli.options import AsJson
from claw_r1.recipes import Duration
from claw_r1.settings import Settings, check_names

app = typer.Typer(help="Make and read the keys that the gateway asks for.", no_args_is_help=True)


@app.command()
def mint(
    scope: Annotated[str, typer.Option("--scope", help=f"What the key is for: {', '.join(keys.SCOPES)}.")],
    run: Annotated[str | None, typer.Option("--run", help="Its run; only an admin's key may leave it out.")] = None,
    trajectory: Annotated[str | None, typer.Option("--trajectory", help="The one trajectory of a rollout key.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The one prompt of a rollout key.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="The channel of a rollout key.")] = None,
    expires: Annotated[str, typer.Option("--expires", help="Until when it is taken: 30m, 12h, 7d.")] = "12h",
) -> None:
    """Print a new key, signed with the first secret of CLAW_SECRET."""
    if scope not in keys.SCOPES:
        raise typer.BadParameter(f"{scope} is not one of {', '.join(keys.SCOPES)}", param_hint="--scope")
    try:
        lifetime = TypeAdapter(Duration).validate_python(expires)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"], param_hint="--expires") from error
    secrets = _secrets()
    key = keys.mint(
        secrets,
        scope=scope,
        now=time.time(),
        lifetime=lifetime,
        run_id=run,
        trajectory_uid=trajectory,
        prompt_uid=prompt,
        channel=channel,
    )
    if not secrets.enforced:
        print("CLAW_SECRET is not set: this key names things on loopback, and protects nothing", file=sys.stderr)
    print(key)


@app.command()
def inspect(
    key: Annotated[str, typer.Argument(help="The key; - reads it from stdin.")],
    as_json: AsJson = False,
) -> None:
    """Print what a key says, and whether it is taken here; exit code 1 if it is not."""
    token = (sys.stdin.read() if key == "-" else key).strip()
    said = keys.read(token)
    reason: str | None = None
    try:
        keys.verify(token, _secrets(), time.time())
    except keys.BadKey as error:
        reason = str(error)
    expires = datetime.fromtimestamp(said.expires_at, UTC).isoformat(timespec="seconds")
    if as_json:
        print(json.dumps(said.fields | {"expires": expires, "valid": reason is None, "reason": reason}))
    else:
        for name, value in (said.fields | {"expires_at": expires}).items():
            if value is not None:
                print(f"{name}: {value}")
        print(f"valid: {'yes' if reason is None else 'no: ' + reason}")
    if reason is not None:
        raise typer.Exit(1)


def _secrets() -> keys.Secrets:
    check_names(os.environ)
    given = os.environ.get("CLAW_SECRET")
    return keys.Secrets.of(Settings.read({"CLAW_SECRET": given} if given else {}).secret)
