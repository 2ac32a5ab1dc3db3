"""What OpenAPI says of the routes, beyond what their signatures tell."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ABOUT = (
    "Images in, classes with probabilities out: the same answers as `linnaeus predict`. A request may hold several "
    "images; one that cannot be read has `error` and does not stop the rest. Every refusal is one line of JSON, "
    '{"error": "…"}.'
)


class Ranked(BaseModel):
    """A class and how likely it is."""

    model_config = ConfigDict(populate_by_name=True)

    label: str = Field(alias="class")
    name: str
    probability: float = Field(ge=0, le=1)


class Like(BaseModel):
    """A training image that looks alike to the network."""

    model_config = ConfigDict(populate_by_name=True)

    path: str
    label: str = Field(alias="class")
    name: str
    similarity: float = Field(description="cosine; 1 is the same direction")
    picture: str = Field(description="a data: address")


class Answer(BaseModel):
    """What `linnaeus predict --format jsonl` says of an image; with ?explain=1 also why."""

    path: str = Field(description="the name that the client gave, or its number")
    top: list[Ranked]
    unsure: bool = Field(description="the model abstains: its first class is less likely than the threshold")
    error: str | None = Field(description="why the image could not be read")
    explained: Ranked | None = None
    stage: str | None = None
    heat_map: str | None = Field(default=None, description="PNG as a data: address: what the network saw, and where")
    like: list[Like] | None = None


class Answers(BaseModel):
    predictions: list[Answer]


class Refusal(BaseModel):
    error: str


IMAGE = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "contentEncoding": "base64"}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"picture": {"type": "array", "items": IMAGE, "minItems": 1}},
                    "required": ["picture"],
                }
            },
            "image/*": {"schema": IMAGE},
            "application/octet-stream": {"schema": IMAGE},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "pictures": {
                            "type": "array",
                            "minItems": 1,
                            "items": {
                                "anyOf": [
                                    BASE64,
                                    {
                                        "type": "object",
                                        "properties": {"name": {"type": "string"}, "data": BASE64},
                                        "required": ["data"],
                                    },
                                ]
                            },
                        }
                    },
                    "required": ["pictures"],
                }
            },
        },
    }
}

WHY = {
    400: "the request was cut short",
    401: "the token is missing or wrong",
    408: "the body took too long",
    413: "too many bytes or images",
    415: "a kind of body that is not read",
    421: "a Host that this server does not answer to",
    422: "nothing in the request can be read as it says it is",
    503: "too much is waiting; Retry-After says when to try again",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may refuse with these."""
    return {status: {"model": Refusal, "description": WHY[status]} for status in statuses}
