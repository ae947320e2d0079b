"""The anthropic SDK, sync or async, streaming or not, with thinking or without; the sync client counts tokens first."""

import argparse
import asyncio
from typing import Any

import anthropic

from tests.clients.drivers.task import DESCRIPTION, MODEL, PARAMETERS, TASK, read_arguments, tell

TOOLS = [{"name": "lookup", "description": DESCRIPTION, "input_schema": PARAMETERS}]


def first_fields(thinking: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 2048,
        "system": [{"type": "text", "text": "You are terse.", "cache_control": {"type": "ephemeral"}}],
        "tools": TOOLS,
        "messages": [{"role": "user", "content": TASK}],
    }
    return fields | ({"thinking": {"type": "enabled", "budget_tokens": 1024}} if thinking else {})


def answer(fields: dict[str, Any], message: Any) -> bool:
    """Append the reply and the results of its tools to the conversation; False if it called none."""
    calls = [block for block in message.content if block.type == "tool_use"]
    if not calls:
        return False
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": f"marker-42-{call.input['code']}"} for call in calls
    ]
    fields["messages"] += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    return True


def last_words(message: Any, seen: list[Any]) -> None:
    text = "".join(block.text for block in message.content if block.type == "text")
    tell(
        text,
        stop_reasons=[one.stop_reason for one in seen],
        blocks=[[block.type for block in one.content] for one in seen],
        output_tokens=[one.usage.output_tokens for one in seen],
    )


def play(client: Any, asked: argparse.Namespace) -> None:
    fields = first_fields(asked.thinking)
    seen = []
    while True:
        if asked.stream:
            with client.messages.stream(**fields) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**fields)
        seen.append(message)
        if not answer(fields, message):
            return last_words(message, seen)


async def play_async(asked: argparse.Namespace) -> None:
    fields = first_fields(asked.thinking)
    seen = []
    async with anthropic.AsyncAnthropic(base_url=asked.base_url, api_key=asked.key) as client:
        while True:
            if asked.stream:
                async with client.messages.stream(**fields) as events:
                    message = await events.get_final_message()
            else:
                message = await client.messages.create(**fields)
            seen.append(message)
            if not answer(fields, message):
                return last_words(message, seen)


def main() -> None:
    asked = read_arguments()
    if asked.asynchronous:
        return asyncio.run(play_async(asked))
    with anthropic.Anthropic(base_url=asked.base_url, api_key=asked.key, max_retries=asked.retries) as client:
        if asked.api == "count":
            fields = {name: value for name, value in first_fields(False).items() if name != "max_tokens"}
            return tell(None, input_tokens=client.messages.count_tokens(**fields).input_tokens)
        try:
            play(client, asked)
        except anthropic.AnthropicError as error:
            tell(None, error=type(error).__name__, status=getattr(error, "status_code", None))


main()
