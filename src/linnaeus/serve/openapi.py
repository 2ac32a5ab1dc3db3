"""OpenAPI descriptions of the routes, beyond what FastAPI derives from their signatures."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

DESCRIPTION = (
    "Classify images: send images, receive classes with probabilities, the same as those of `linnaeus predict`. A "
    "request may contain several images; if one cannot be read, its prediction has an `error` and the others are "
    'answered. Every error response is one line of JSON: {"error": "…"}.'
)


class ClassProbability(BaseModel):
    """A class and its probability."""

    model_config = ConfigDict(populate_by_name=True)

    label: str = Field(alias="class")
    name: str
    probability: float = Field(ge=0, le=1)


class SimilarImage(BaseModel):
    """A training image with similar features."""

    model_config = ConfigDict(populate_by_name=True)

    path: str
    label: str = Field(alias="class")
    name: str
    similarity: float = Field(description="cosine similarity, -1 to 1")
    thumbnail: str = Field(description="a data: URL")


class LabelMap(BaseModel):
    """Where the network sees a label."""

    explained: ClassProbability
    heat_map: str = Field(description="image with heat map, PNG as a data: URL")
    empty: bool = Field(description="whether no area of the image supports the label")


class Prediction(BaseModel):
    """The prediction for one image, as printed by `linnaeus predict --format jsonl`; the rest with ?explain=1."""

    path: str = Field(description="name given by the client, or the number of the image")
    top: list[ClassProbability]
    unsure: bool = Field(description="whether the best class is below the threshold of the model")
    unknown: bool | None = Field(
        default=None, description="whether the image belongs to none of the classes; null where the model cannot tell"
    )
    distance: float | None = Field(default=None, description="cosine distance from the training images, 0 to 2")
    error: str | None = Field(description="why the image could not be read")
    labels: list[str] | None = Field(
        default=None, description="labels that the image is given, of a model that gives images several, or none"
    )
    explained: ClassProbability | None = Field(default=None, description="class that the heat map explains")
    stage: str | None = Field(default=None, description="stage of the network used for the heat map")
    heat_map: str | None = Field(default=None, description="image with heat map, PNG as a data: URL")
    empty: bool | None = Field(default=None, description="whether no area of the image supports the class")
    maps: list[LabelMap] | None = Field(
        default=None, description="a heat map for each label, or for the most probable one where there is none"
    )
    like: list[SimilarImage] | None = Field(default=None, description="most similar training images")


class Predictions(BaseModel):
    """One prediction per image, in the order of the request."""

    predictions: list[Prediction]


class Error(BaseModel):
    """Why a request failed."""

    error: str


IMAGE = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "contentEncoding": "base64"}
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": IMAGE, "minItems": 1}},
                    "required": ["image"],
                }
            },
            "image/*": {"schema": IMAGE},
            "application/octet-stream": {"schema": IMAGE},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {
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
                    "required": ["images"],
                }
            },
        },
    }
}

ERRORS = {
    400: "the request is incomplete",
    401: "the token is missing or invalid",
    403: "a page of another origin sent the request",
    408: "the request body took too long",
    413: "too many bytes or images",
    415: "unsupported content type",
    421: "unknown Host header",
    422: "malformed request",
    503: "at capacity; retry after the seconds in Retry-After",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route that can fail with these statuses."""
    return {status: {"model": Error, "description": ERRORS[status]} for status in statuses}
