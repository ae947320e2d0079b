"""`claw dlq`: records that could not be read are listed, shown, and sent back once what was wrong is mended."""

import asyncio
import dataclasses
import json
import sys
from typing import Annotated, Any, Final

import msgspec
import typer

from claw_r1.cli.address import kafka_address
from claw_r1.cli.options import AsJson, Kafka
from claw_r1.errors import UserError
from claw_r1.letters import DeadLetterTopic, Found, Letter, Replay, dead_letter_topics
from claw_r1.topics import dlq_topic

app = typer.Typer(help="List, show and replay dead letters.", no_args_is_help=True)

SHOWN_BYTES: Final = 4096
Topic = Annotated[str, typer.Argument(help="Topic that the records were read from, such as claw.events.v1.")]


@app.command("list")
def list_letters(kafka: Kafka = None, as_json: AsJson = False) -> None:
    """Count the dead letters of every topic by reason; those that were sent back are not counted there."""
    found = asyncio.run(_list(kafka_address(kafka)))
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
        return
    for one in (one for one in found if one.letters):
        reasons = ", ".join(f"{count} {reason}" for reason, count in one.reasons.items()) or "none left"
        span = "" if one.first is None else f", offsets {one.first} to {one.last}"
        print(f"{one.topic}: {one.letters} letters, {one.replayed} sent back{span}: {reasons}")
    if not any(one.letters for one in found):
        print("there are no dead letters", file=sys.stderr)


@app.command()
def show(
    topic: Topic,
    offset: Annotated[int, typer.Argument(min=0, help="Offset of the letter in the dead-letter topic.")],
    kafka: Kafka = None,
    as_json: AsJson = False,
) -> None:
    """Show one letter: where it came from, why it died, its headers, and as much of its body as can be read."""
    shown = describe(asyncio.run(_one(kafka_address(kafka), _named(topic), offset)))
    if as_json:
        print(json.dumps(shown))
        return
    for name, value in shown.items():
        print(f"{name}: {value if isinstance(value, str | int) else json.dumps(value)}")


@app.command()
def replay(
    topic: Topic,
    reason: Annotated[
        list[str] | None, typer.Option("--reason", help="Only letters with this reason; may be repeated.")
    ] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Only letters of this reader: streams, sinks, …")] = None,
    first: Annotated[int, typer.Option("--from", min=0, help="Only letters from this offset on.")] = 0,
    last: Annotated[int | None, typer.Option("--to", min=0, help="Only letters up to this offset.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also letters that were sent back before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    kafka: Kafka = None,
    as_json: AsJson = False,
) -> None:
    """Send records back to their topic as they were. Repeated, it sends those that are not yet sent."""

    def choose(letter: Letter) -> bool:
        fits = (not reason or letter.reason in reason) and (stage is None or letter.stage == stage)
        return fits and first <= letter.offset and (last is None or letter.offset <= last)

    done = asyncio.run(_replay(kafka_address(kafka), _named(topic), choose, again=again, dry_run=dry_run))
    if as_json:
        print(json.dumps({**dataclasses.asdict(done), "dry_run": dry_run}))
        return
    print(f"{done.topic}: {len(done.sent)} records {'would be' if dry_run else 'were'} sent back")
    for count, why in (
        (len(done.doubles), "letters of a record that goes back with another letter"),
        (done.already, "letters were sent back before; --again sends them once more"),
        (len(done.without_value), "letters were too large to keep their record: it is only at its origin"),
    ):
        if count:
            print(f"{count} {why}", file=sys.stderr)


def _named(topic: str) -> str:
    """Without the suffix, which may be written too."""
    return topic.removesuffix(dlq_topic(""))


async def _list(kafka: str) -> list[Found]:
    found = []
    for topic in await dead_letter_topics(kafka):
        letters = await DeadLetterTopic.opened(kafka, topic)
        try:
            found.append(await letters.found())
        finally:
            await letters.close()
    return found


async def _one(kafka: str, topic: str, offset: int) -> Letter:
    letters = await DeadLetterTopic.opened(kafka, topic)
    try:
        marks = await letters.marks()
        found = [letter async for letter in letters.letters(offset, offset + 1)]
    finally:
        await letters.close()
    if found:
        return dataclasses.replace(found[0], replayed=offset in marks)
    raise UserError(
        f"there is no dead letter of {topic} at offset {offset}: `claw dlq list` shows where there are some"
    )


async def _replay(kafka: str, topic: str, choose: Any, *, again: bool, dry_run: bool) -> Replay:
    letters = await DeadLetterTopic.opened(kafka, topic)
    try:
        return await letters.replay(kafka, choose, again=again, dry_run=dry_run)
    finally:
        await letters.close()


def describe(letter: Letter) -> dict[str, Any]:
    """A letter as JSON: bytes as text where they are text, the body as what decodes, else its first bytes as hex."""
    topic, partition, offset = letter.origin
    return {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "letter": letter.offset,
        "stage": letter.stage,
        "reason": letter.reason,
        "error": letter.error,
        "replayed": letter.replayed,
        "key": _text(letter.key) if letter.key is not None else None,
        "headers": {name: _text(value) for name, value in letter.headers},
        "bytes": len(letter.value),
        **_body(letter.value),
    }


def _body(value: bytes) -> dict[str, Any]:
    """What a letter holds; its bytes where they do not decode, which may be why it is dead."""
    as_bytes = {"hex": value[:SHOWN_BYTES].hex()}
    try:
        decoded = msgspec.msgpack.decode(value)
        return {"body": _plain(decoded)} if isinstance(decoded, dict | list) else as_bytes
    except (msgspec.DecodeError, ValueError, RecursionError):
        return as_bytes


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return _text(value[:SHOWN_BYTES])
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"hex {value.hex()}"
