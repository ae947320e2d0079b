"""An agent plays a game of the library `textarena` with a model behind a base URL; the library's verdict is the reward.

An ordinary agent program: it knows the `openai` package and a URL, and nothing else of this project. `solo` plans and
plays in one conversation; `advised` first asks a sub-agent, in a conversation of its own, for an opening move.
The call after the end of the game closes the conversation, so that every trajectory has at least three model calls.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, cast

import textarena
from openai import AsyncOpenAI

Message = dict[str, Any]
Kind = Literal["solo", "advised"]

FIRST, LAST = 1, 12
# The library counts a turn after it judged it, so `TURNS` = 3 gives four guesses: binary search finds one of 15 numbers.
TURNS: Final = 3
PATIENCE: Final = 10  # retries of what is said once a game; the library waits up to 8 s between two
MAX_CALLS: Final = 40  # the library ends a game long before; this bounds a library that does not


def _tool(name: str, description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


GUESS: Final = [_tool("guess", "Play one number.")]
PROPOSE: Final = [_tool("propose", "Propose one number.")]


class Chat(Protocol):
    """One model call: messages and tools in, the assistant's message out, as it goes back into the history."""

    async def __call__(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Message: ...


@dataclass(slots=True)
class OpenAIChat:
    """Model calls through the `openai` package, with a tally of what was sent and what came back whole.

    `client`: its base URL names the trajectory. A call that raised is in `sent` and not in `acknowledged`: whether it was
    recorded is not known here.
    """

    client: AsyncOpenAI
    model: str
    stream: bool = False
    sent: int = 0
    acknowledged: list[str] = field(default_factory=list)  # response ids

    async def __call__(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Message:
        self.sent += 1
        call = self._streamed if self.stream else self._whole
        identifier, message = await call(messages, tools)
        self.acknowledged.append(identifier)
        return message

    async def _whole(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> tuple[str, Message]:
        reply = await self.client.chat.completions.create(
            model=self.model, messages=cast(Any, messages), tools=cast(Any, tools), temperature=1.0
        )
        message = reply.choices[0].message
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls or ()
            if call.type == "function"
        ]
        return reply.id, _assistant(message.content, calls)

    async def _streamed(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> tuple[str, Message]:
        identifier, text, finished = "", "", False
        calls: list[dict[str, Any]] = []
        chunks = await self.client.chat.completions.create(
            model=self.model, messages=cast(Any, messages), tools=cast(Any, tools), temperature=1.0, stream=True
        )
        async for chunk in chunks:
            identifier = chunk.id
            for choice in chunk.choices:
                finished = finished or choice.finish_reason is not None
                text += choice.delta.content or ""
                for part in choice.delta.tool_calls or ():
                    if part.index == len(calls):
                        calls.append({"id": part.id, "type": "function", "function": {"name": "", "arguments": ""}})
                    if part.function is not None:
                        calls[part.index]["function"]["name"] += part.function.name or ""
                        calls[part.index]["function"]["arguments"] += part.function.arguments or ""
        if not finished:
            raise ConnectionError("the stream ended before the answer did")
        return identifier, _assistant(text if text or not calls else None, calls)


def _assistant(content: str | None, calls: list[dict[str, Any]]) -> Message:
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = calls
    return message


@dataclass(frozen=True, slots=True)
class Task:
    """A game: the same seed hides the same number."""

    seed: int
    kind: Kind = "solo"
    first: int = FIRST
    last: int = LAST
    turns: int = TURNS


@dataclass(frozen=True, slots=True)
class Result:
    """The library's verdict and what it took."""

    success: bool
    reason: str
    calls: int


def _move(answer: Message) -> str:
    """The action for the library: `[number]` from the first tool call, else the text as it is (it will be refused)."""
    for call in answer.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        try:
            return f"[{int(json.loads(arguments)['number'])}]"
        except (ValueError, KeyError, TypeError):
            return str(arguments)
    return str(answer.get("content") or "")


def _reply(answer: Message, text: str) -> list[Message]:
    """What the agent answers: a result for each tool call, or a user's message where there was none."""
    calls = answer.get("tool_calls") or ()
    if not calls:
        return [{"role": "user", "content": text}]
    rest = "One number at a time."
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": text if index == 0 else rest}
        for index, call in enumerate(calls)
    ]


async def _advice(chat: Chat, task: Task) -> str:
    """The sub-agent: a conversation of its own, of one call."""
    answer = await chat(
        [
            {"role": "system", "content": "You advise a player."},
            {"role": "user", "content": f"The number is between {task.first} and {task.last}. Propose a number."},
        ],
        PROPOSE,
    )
    move = _move(answer)
    return f"Your helper proposes {move[1:-1]}." if move.startswith("[") else "Your helper proposes nothing."


async def play(chat: Chat, task: Task) -> Result:
    """Play one game to its end and say what the library says."""
    game = textarena.make("GuessTheNumber-v0-raw", min_number=task.first, max_number=task.last, max_turns=task.turns)
    game.reset(num_players=1, seed=task.seed)  # seeds the `random` module; no await may come between
    rules = str(game.get_observation()[1][-1][1])
    calls = 1
    messages: list[Message] = [{"role": "system", "content": "You play a game by calling tools."}]
    if task.kind == "advised":
        messages.append({"role": "user", "content": f"{rules}\n{await _advice(chat, task)}"})
    else:
        messages.append({"role": "user", "content": f"{rules}\nFirst write a short plan."})
        messages.append(await chat(messages, GUESS))
        messages.append({"role": "user", "content": "Play now."})
    done = False
    while not done and calls < MAX_CALLS:
        answer = await chat(messages, GUESS)
        calls += 1
        done, _ = game.step(_move(answer))
        text = str(game.state.game_info[0]["reason"]) if done else str(game.get_observation()[1][-1][1])
        messages += [answer, *_reply(answer, f"Game over. {text}" if done else text)]
    await chat(messages, GUESS)
    rewards, info = game.close()
    success = done and rewards[0] == 1 and not info[0]["invalid_move"]
    return Result(success, str(info[0].get("reason", "")), calls + 1)


async def rollout(chat: OpenAIChat, task: Task, *, channel: str = "train") -> Result:
    """One trajectory: say what the task is, play it, and end it with the reward: 1 for a won game, 0 for a lost one."""
    about = {"env": "GuessTheNumber", "kind": task.kind, "seed": task.seed}
    register = {"channel": channel, "task_id": f"guess-{task.first}-{task.last}-{task.seed}", "metadata": about}
    patient = chat.client.with_options(max_retries=PATIENCE)
    await patient.post("/register_trajectory", cast_to=object, body=register)
    result = await play(chat, task)
    reward = {"channel": channel, "reward": float(result.success)}
    await patient.post("/complete_trajectory", cast_to=object, body=reward)
    return result
