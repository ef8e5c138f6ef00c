"""What a request may say, field by field, with its bounds. A wrong value is refused under the field's own name.

Fields that OpenAI knows and this server does not have are refused wherever they ask for something (`REFUSED`); those
that change no answer are accepted (`HARMLESS`). Others are ignored, because clients send new ones all the time, unless
one looks like a slip of the pen for a field there is. Beside OpenAI's fields there are `top_k` and `repetition_penalty`
as in `Sampler`; what is not given has the defaults of the official chat().
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from glmcpu import limits
from glmcpu.errors import printable
from glmcpu.sampling import Sampler
from glmcpu.server.problems import refuse

SEED = 2**63 - 1
OFFICIAL = Sampler()

# A field that is not supported, and the values with which it asks for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "grammar": ("",),
    "guided_json": (),
    "guided_regex": (),
    "json_schema": (),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "typical_p": (1, 1.0),
    "verbosity": (),
    "web_search_options": (),
}
HARMLESS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls", "prompt_cache_key"}
)

Count = Annotated[int, Field(ge=1, le=limits.CONTEXT)]
Text = Annotated[str, StringConstraints(max_length=limits.INPUT_BYTES)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=limits.STOP_BYTES)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _few_ids(value: Any) -> Any:
    """Before each of them is looked at."""
    if isinstance(value, dict) and len(value) > limits.BIASED_IDS:
        raise refuse("logit_bias", f"logit_bias has {len(value):,} ids, and at most {limits.BIASED_IDS:,} may be given")
    return value


class Fields(BaseModel):
    """A JSON object; numbers in quotes and the like are not converted."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _prepared(cls, value: Any) -> Any:
        """Null is the same as not given."""
        if not isinstance(value, dict):
            return value
        if len(value) > limits.FIELDS:
            raise refuse(None, f"{len(value):,} fields in an object, and at most {limits.FIELDS} may be given")
        cls._check_others({key: item for key, item in value.items() if key not in cls.model_fields})
        return {key: item for key, item in value.items() if item is not None or key not in cls.model_fields}

    @classmethod
    def _check_others(cls, others: dict[str, Any]) -> None:
        """What is no field is ignored, unless a class says otherwise."""


class Sampling(Fields):
    """What both kinds of completion have."""

    model: Annotated[str, StringConstraints(max_length=1024)] = Field("", description="May be left out.")
    max_tokens: Count | None = Field(None, description="The longest answer; what the context leaves if not given.")
    temperature: float = Field(OFFICIAL.temperature, ge=0, le=2, description="0 always takes the likeliest token.")
    top_p: float = Field(OFFICIAL.top_p, gt=0, le=1)
    top_k: int = Field(OFFICIAL.top_k, ge=0, le=limits.VOCABULARY, description="0 is off.")
    repetition_penalty: float = Field(OFFICIAL.repetition_penalty, gt=0, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=SEED, description="Equal seeds give equal answers.")
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=limits.STOP_STRINGS)] = Field([])
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_few_ids)] = Field(
        {}, description="Token ids, as strings, and what is added to their scores."
    )
    n: int = Field(1, ge=1, le=limits.CHOICES)
    stream: bool = False
    stream_options: "StreamOptions | None" = None

    @classmethod
    def _check_others(cls, others: dict[str, Any]) -> None:
        for key in others.keys() - HARMLESS:
            _check_unknown(key, others[key], cls.model_fields)

    @model_validator(mode="after")
    def _consistent(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise refuse("stream_options", "stream_options are for a stream; set stream to true, or leave them out")
        return self

    def sampler(self, choice: int = 0) -> Sampler:
        """How the n-th choice is drawn."""
        return Sampler(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else self.seed + choice,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
        )

    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)


class StreamOptions(Fields):
    include_usage: bool = False


class Part(Fields):
    type: Literal["text"]
    text: Text


class Message(Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(fail_fast=True)]

    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class JsonSchema(Fields):
    name: Annotated[str, StringConstraints(max_length=256)] = ""
    strict: bool = False
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Fields):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise refuse("response_format.json_schema", "type json_schema needs json_schema, with the schema in it")
        return self


class ChatRequest(Sampling):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=limits.MESSAGES)]
    max_completion_tokens: Count | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=limits.TOP_LOGPROBS, description="Needs logprobs.")
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise refuse("top_logprobs", "top_logprobs needs logprobs to be true")
        return self


Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=limits.CHOICES)]
TokenId = Annotated[int, Field(ge=0, lt=limits.VOCABULARY)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=limits.CONTEXT)]


class CompletionRequest(Sampling):
    prompt: Text | Texts | TokenIds = Field(
        description="A text, up to 8 of them, or token ids as /tokenize gives, with the special ones the model reads."
    )
    logprobs: int | None = Field(None, ge=0, le=limits.TOP_LOGPROBS)


class TokenizeRequest(Fields):
    content: Text
    add_special: bool = Field(False, description="Put [gMASK] and <sop> behind, as before an answer.")


class DetokenizeRequest(Fields):
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=limits.CONTEXT)]


class OfficialRequest(Fields):
    """The fields of the official api.py, with its defaults; 0 is a temperature here."""

    prompt: Text
    history: Annotated[list[Annotated[list[str], Field(fail_fast=True)]], Field(fail_fast=True)] = []
    max_length: int = Field(2048, ge=0, le=limits.CONTEXT, description="Tokens of prompt and answer together.")
    top_p: float = Field(OFFICIAL.top_p, ge=0, le=1)
    temperature: float = Field(OFFICIAL.temperature, ge=0, le=100)


def ignored(body: object, kind: type[Fields]) -> list[str]:
    """The fields of a request that mean nothing to this server, for its log."""
    return sorted(body.keys() - kind.model_fields.keys() - HARMLESS - REFUSED.keys()) if isinstance(body, dict) else []


def _check_unknown(key: str, value: Any, known: Any) -> None:
    if key in REFUSED:
        if value is not None and not any(value == idle and type(value) is type(idle) for idle in REFUSED[key]):
            raise refuse(key, f"{key} is not supported by this server; leave it out")
        return
    if near := _near(key, [*known, *REFUSED]):
        raise refuse(key, f"{printable(key, 40)} is no field; did you mean {near}?")


def _near(key: str, known: Sequence[str]) -> str:
    """A field that differs from `key` by a slip of the pen."""
    return next(iter(difflib.get_close_matches(key[:64].lower(), known, 1, 0.88)), "")
