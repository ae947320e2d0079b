"""Requests to Kafka brokers that aiokafka lacks, in its own terms (https://kafka.apache.org/protocol).

Of each the first version alone, which every broker speaks that this project is used with.
"""

from collections.abc import Mapping
from typing import Final

from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Schema, String

_SET: Final = 0
"""What is done to a setting."""


class SetConfigsAnswer(Response):
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(("error_code", Int16), ("message", String("utf-8")), ("type", Int8), ("name", String("utf-8"))),
        ),
    )


class SetConfigsStruct(RequestStruct):
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = SetConfigsAnswer
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("type", Int8),
                ("name", String("utf-8")),
                ("configs", Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8")))),
            ),
        ),
        ("validate_only", Boolean),
    )


class SetConfigs(Request[SetConfigsStruct]):
    """IncrementalAlterConfigs, which aiokafka lacks: by its own request what is not named is unset."""

    API_KEY = 44

    def __init__(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        self._resources = [
            (int(ConfigResourceType.TOPIC), topic, [(name, _SET, value) for name, value in config.items()])
            for topic, config in configs.items()
        ]

    def build(self, request_struct_class: type[SetConfigsStruct]) -> SetConfigsStruct:
        return request_struct_class(self._resources, False)
