"""The OpenAI Agents SDK on chat completions or responses, streaming or not."""

import asyncio

import agents
import openai

from tests.clients.drivers.task import MODEL, TASK, lookup, read_arguments, tell


async def play() -> None:
    asked = read_arguments()
    async with openai.AsyncOpenAI(base_url=asked.base_url, api_key=asked.key) as client:
        kind = agents.OpenAIChatCompletionsModel if asked.api == "chat" else agents.OpenAIResponsesModel
        agent = agents.Agent(
            name="tester",
            instructions="You are terse.",
            model=kind(model=MODEL, openai_client=client),
            tools=[agents.function_tool(lookup)],
        )
        if asked.stream:
            result = agents.Runner.run_streamed(agent, TASK)
            async for _ in result.stream_events():
                pass
        else:
            result = await agents.Runner.run(agent, TASK)
        tell(str(result.final_output))


asyncio.run(play())
