"""A LangGraph ReAct agent on langchain-openai (chat, responses) or langchain-anthropic (messages), streaming or not."""

from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import BaseMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent

from tests.clients.drivers.task import MODEL, TASK, lookup, read_arguments, tell


def text_of(message: BaseMessage) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def main() -> None:
    asked = read_arguments()
    model: Any
    if asked.api == "messages":
        model = ChatAnthropic(model=MODEL, base_url=asked.base_url, api_key=asked.key, streaming=asked.stream)
    else:
        responses = asked.api == "responses"
        model = ChatOpenAI(
            model=MODEL,
            base_url=asked.base_url,
            api_key=asked.key,
            streaming=asked.stream,
            use_responses_api=responses,
        )
    agent = create_react_agent(model, [tool(lookup)], prompt="You are terse.")
    question: Any = {"messages": [("user", TASK)]}
    end = list(agent.stream(question, stream_mode="values"))[-1] if asked.stream else agent.invoke(question)
    tell(text_of(end["messages"][-1]))


main()
