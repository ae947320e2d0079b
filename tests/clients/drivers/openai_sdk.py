"""The openai SDK, sync or async, on chat completions or responses, streaming or not."""

import argparse
import asyncio
from typing import Any

import openai

from tests.clients.drivers.task import DESCRIPTION, MODEL, PARAMETERS, TASK, read_arguments, run_call, tell

FUNCTION = {"name": "lookup", "description": DESCRIPTION, "parameters": PARAMETERS, "strict": True}


def play_chat(client: Any, stream: bool) -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    messages: list[Any] = [
        {"role": "developer", "content": "You are terse."},
        {"role": "user", "content": [{"type": "text", "text": TASK}]},
    ]
    usage = []
    while True:
        fields = {"model": MODEL, "messages": messages, "tools": tools, "temperature": 1.0, "seed": 1}
        if stream:
            with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as events:
                events.until_done()
                completion = events.get_final_completion()
        else:
            completion = client.chat.completions.create(**fields)
        usage.append(completion.usage.completion_tokens)
        message = completion.choices[0].message
        if not message.tool_calls:
            return tell(message.content, usage=usage)
        messages.append(message)
        for call in message.tool_calls:
            result = run_call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


async def play_chat_async(client: Any, stream: bool) -> None:
    tools = [{"type": "function", "function": FUNCTION}]
    messages: list[Any] = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": TASK}]
    while True:
        fields = {"model": MODEL, "messages": messages, "tools": tools, "temperature": 1.0}
        if stream:
            async with client.chat.completions.stream(**fields) as events:
                completion = await events.get_final_completion()
        else:
            completion = await client.chat.completions.create(**fields)
        message = completion.choices[0].message
        if not message.tool_calls:
            return tell(message.content)
        messages.append(message)
        for call in message.tool_calls:
            result = run_call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def answers(output: Any) -> list[Any]:
    """The items that the client sends back for a reply's function calls."""
    return [
        {"type": "function_call_output", "call_id": item.call_id, "output": run_call(item.name, item.arguments)}
        for item in output
        if item.type == "function_call"
    ]


def play_responses(client: Any, stream: bool) -> None:
    tools = [{"type": "function", **FUNCTION}]
    items: list[Any] = [{"role": "user", "content": TASK}]
    usage, kinds = [], []
    while True:
        fields = {"model": MODEL, "input": items, "tools": tools, "instructions": "You are terse.", "store": False}
        if stream:
            with client.responses.stream(**fields) as events:
                kinds.append([event.type for event in events])
                response = events.get_final_response()
        else:
            response = client.responses.create(**fields)
        usage.append(response.usage.output_tokens)
        results = answers(response.output)
        if not results:
            return tell(response.output_text, usage=usage, events=kinds)
        items += [*response.output, *results]


async def play_responses_async(client: Any, stream: bool) -> None:
    tools = [{"type": "function", **FUNCTION}]
    items: list[Any] = [{"role": "user", "content": TASK}]
    while True:
        fields = {"model": MODEL, "input": items, "tools": tools}
        if stream:
            async with client.responses.stream(**fields) as events:
                response = await events.get_final_response()
        else:
            response = await client.responses.create(**fields)
        results = answers(response.output)
        if not results:
            return tell(response.output_text)
        items += [*response.output, *results]


async def play_async(asked: argparse.Namespace) -> None:
    async with openai.AsyncOpenAI(base_url=asked.base_url, api_key=asked.key, max_retries=asked.retries) as client:
        await (play_chat_async if asked.api == "chat" else play_responses_async)(client, asked.stream)


def main() -> None:
    asked = read_arguments()
    if asked.asynchronous:
        return asyncio.run(play_async(asked))
    with openai.OpenAI(base_url=asked.base_url, api_key=asked.key, max_retries=asked.retries) as client:
        try:
            models = [model.id for model in client.models.list()]
            assert MODEL in models, models
            (play_chat if asked.api == "chat" else play_responses)(client, asked.stream)
        except (openai.OpenAIError, ConnectionError) as error:
            tell(None, error=type(error).__name__, status=getattr(error, "status_code", None))


main()
