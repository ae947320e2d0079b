"""litellm as a client, in any of its three dialects, streaming or not."""

import asyncio
import json
from typing import Any

import litellm

from tests.clients.drivers.task import DESCRIPTION, MODEL, PARAMETERS, TASK, read_arguments, run_call, tell

FUNCTION = {"name": "lookup", "description": DESCRIPTION, "parameters": PARAMETERS}


def play_chat(base_url: str, key: str, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": TASK}]
    fields = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": key}
    tools = [{"type": "function", "function": FUNCTION}]
    while True:
        reply: Any = litellm.completion(**fields, messages=messages, tools=tools, stream=stream)
        if stream:
            reply = litellm.stream_chunk_builder(list(reply), messages=messages)
        message = reply.choices[0].message
        if not message.tool_calls:
            return tell(message.content)
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = run_call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def play_responses(base_url: str, key: str, stream: bool) -> None:
    items: list[Any] = [{"role": "user", "content": TASK}]
    fields = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": key}
    while True:
        reply: Any = litellm.responses(**fields, input=items, tools=[{"type": "function", **FUNCTION}], stream=stream)
        if stream:
            (reply,) = [event.response for event in reply if event.type == "response.completed"]
        output = [item if isinstance(item, dict) else item.model_dump(exclude_none=True) for item in reply.output]
        calls = [item for item in output if item["type"] == "function_call"]
        if not calls:
            return tell("".join(part["text"] for item in output for part in item.get("content", [])))
        items += output
        for call in calls:
            result = run_call(call["name"], call["arguments"])
            items.append({"type": "function_call_output", "call_id": call["call_id"], "output": result})


async def play_messages(base_url: str, key: str, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": TASK}]
    tools = [{"name": "lookup", "description": DESCRIPTION, "input_schema": PARAMETERS}]
    while True:
        reply: Any = await litellm.anthropic.messages.acreate(
            model=f"anthropic/{MODEL}",
            api_base=base_url,
            api_key=key,
            messages=messages,
            tools=tools,
            max_tokens=1024,
            stream=stream,
        )
        content = fold(b"".join([chunk async for chunk in reply])) if stream else reply["content"]
        calls = [block for block in content if block["type"] == "tool_use"]
        if not calls:
            return tell("".join(block["text"] for block in content if block["type"] == "text"))
        results = [
            {
                "type": "tool_result",
                "tool_use_id": call["id"],
                "content": run_call(call["name"], json.dumps(call["input"])),
            }
            for call in calls
        ]
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]


def fold(stream: bytes) -> list[dict[str, Any]]:
    """The content blocks of a messages stream: litellm hands its bytes on."""
    blocks: list[dict[str, Any]] = []
    for line in stream.decode().splitlines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line.removeprefix("data: "))
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"] | {"json": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            blocks[-1]["json"] += delta.get("partial_json", "")
            if "text" in delta:
                blocks[-1]["text"] += delta["text"]
    for block in blocks:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments)
    return blocks


def main() -> None:
    asked = read_arguments()
    if asked.api == "messages":
        asyncio.run(play_messages(asked.base_url, asked.key, asked.stream))
    else:
        (play_chat if asked.api == "chat" else play_responses)(asked.base_url, asked.key, asked.stream)


main()
