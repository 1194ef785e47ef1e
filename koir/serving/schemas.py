"""What requests may hold, for every dialect, and what answers look like. Only a search refuses unknown fields."""

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from koir.errors import nearest


def _whole(text: str) -> str:
    """Python's JSON lets half of a surrogate pair through, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("found half of a surrogate pair; expected valid Unicode") from None
    return text


def composed(text: str) -> str:
    """NFC, as models and indexes read all text here."""
    return unicodedata.normalize("NFC", text)


Sent = Annotated[str, AfterValidator(_whole)]  # what an answer repeats as it was sent; routes compose it for models
Text = Annotated[Sent, AfterValidator(composed)]
TokenLimit = Annotated[int | None, Field(ge=1, description="tokens; what is longer is cut and the answer says so")]
Query = Annotated[Text, Field(min_length=1, description="what is asked")]


class TextDocument(BaseModel):
    """A document given as an object; rank_fields names the fields to read, else text."""

    model_config = ConfigDict(extra="allow")
    text: Sent | None = None


Document = Sent | TextDocument
# Lists end at their first fault: one error for each of a million elements would take minutes and gigabytes.
Texts = Annotated[list[Text], Field(fail_fast=True)]
Documents = Annotated[
    list[Document], Field(min_length=1, fail_fast=True, description="texts, or objects with a field text")
]


class _Truncation(BaseModel):
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description="tokens of the whole sequence; -1: the model's")
    truncation_side: Literal["left", "right"] = Field("right", description="which end of a text that is too long goes")

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _room_for_a_word(cls, tokens: int | None) -> int | None:
        if tokens is not None and 0 <= tokens < 8:
            raise ValueError("expected at least 8 tokens, or -1 for the model's own limit")
        return None if tokens == -1 else tokens

    @field_validator("truncation_side", mode="before")
    @classmethod
    def _in_any_case(cls, side: Any) -> Any:
        return "right" if side is None else side.lower() if isinstance(side, str) else side


def _listed(documents: Any) -> Any:
    return [documents] if isinstance(documents, str) else documents


class RerankRequest(_Truncation):
    """Jina, Cohere v1 and v2, LocalAI, Infinity: top_n is at least 1."""

    model: str | None = Field(None, description="as /v1/models lists it; any name where one reranker is loaded")
    query: Query
    documents: Documents
    top_n: int | None = Field(None, ge=1, description="best ones returned; default: all")
    return_documents: bool | None = Field(None, description="repeat each text as document.text; default: the server's")
    rank_fields: Texts | None = Field(None, description="fields of document objects to read (Cohere v1)")
    max_tokens_per_doc: TokenLimit = None
    max_tokens_per_query: TokenLimit = None
    raw_scores: bool | None = Field(None, description="logits in place of 0 to 1 (Infinity, TEI)")
    use_activation: bool | None = Field(None, description="false: logits in place of 0 to 1 (vLLM)")

    @property
    def raw(self) -> bool:
        """Whether logits are wanted."""
        return bool(self.raw_scores) or self.use_activation is False


class VllmRerankRequest(RerankRequest):
    """vLLM: top_n 0 means all, and one document may come without its list."""

    documents: Annotated[Documents, BeforeValidator(_listed)]
    top_n: int | None = Field(None, ge=0, description="best ones returned; 0 or absent: all")


class TeiRerankRequest(BaseModel):
    """Text Embeddings Inference."""

    model: str | None = None
    query: Query
    texts: Annotated[list[Sent], Field(min_length=1, fail_fast=True)]
    raw_scores: bool | None = Field(None, description="logits in place of 0 to 1")
    return_text: bool | None = Field(None, description="repeat each text")
    truncate: bool | None = Field(None, description="false: refuse what is too long; default: cut it")
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    top_n: int | None = Field(None, ge=1, description="an extension: best ones returned; default: all")


def _dialect(body: Any) -> str:
    return "tei" if isinstance(body, dict) and "texts" in body and "documents" not in body else "vllm"


AnyRerankRequest = Annotated[
    Annotated[TeiRerankRequest, Tag("tei")] | Annotated[VllmRerankRequest, Tag("vllm")],
    Discriminator(_dialect),
    Field(json_schema_extra=lambda schema: schema.update(anyOf=schema.pop("oneOf"))),  # a body may have both's fields
]


class ScoreRequest(_Truncation):
    """vLLM's score: one text against many, or as many pairs as there are texts on both sides."""

    model: str | None = None
    text_1: Text | Texts | None = None
    text_2: Text | Texts | None = None
    queries: Text | Texts | None = None
    documents: Text | Texts | None = None
    data_1: Text | Texts | None = None
    data_2: Text | Texts | None = None
    use_activation: bool | None = None

    @model_validator(mode="after")
    def _two_sides(self) -> "ScoreRequest":
        if len(self._given()) != 1:
            raise ValueError("expected text_1 and text_2, or queries and documents, or data_1 and data_2")
        left, right = (len(side) for side in self.sides)
        if not left or not right or (left != right and left != 1):
            raise ValueError(f"found {left} and {right} texts; expected one on the first side, or equally many")
        return self

    def _given(self) -> list[tuple[str, str]]:
        return [names for names in SIDES if all(getattr(self, name) is not None for name in names)]

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """Both sides as lists."""
        (names,) = self._given()
        first, second = (getattr(self, name) for name in names)
        return [first] if isinstance(first, str) else first, [second] if isinstance(second, str) else second

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs to score."""
        first, second = self.sides
        return list(zip(first * len(second) if len(first) == 1 else first, second, strict=True))


SIDES = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
PROMPTS = {"query": "query", "search_query": "query", "retrieval.query": "query"}
PROMPTS |= {"document": "document", "passage": "document", "search_document": "document"}
PROMPTS |= {"retrieval.passage": "document", "retrieval.document": "document"}
PROMPTS |= dict.fromkeys(("classification", "clustering", "separation", "text-matching"))  # no prompt


class EmbeddingRequest(_Truncation):
    """OpenAI's embeddings, with Cohere's input_type."""

    model: str | None = None
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    ) = Field(description="a text, texts, or token ids of the model's own tokenizer, taken as they are")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="default, and null: float")
    dimensions: int | None = Field(None, ge=1, description="the first so many, normalised again")
    input_type: str | None = Field(None, description="query or document adds the model's saved prompt; default: none")
    task: str | None = Field(None, description="as input_type (Jina: retrieval.query, retrieval.passage)")
    prompt_name: str | None = Field(None, description="as input_type (TEI)")

    @field_validator("input_type", "task", "prompt_name")
    @classmethod
    def _known_prompt(cls, name: str | None) -> str | None:
        if name and name not in PROMPTS:
            known = ", ".join(PROMPTS) + nearest(name.lower(), PROMPTS)
            raise ValueError(f"found no known kind of text; expected one of {known}")
        return name

    @property
    def prompt(self) -> str | None:
        """Which of the model's prompts goes before each text."""
        name = self.input_type or self.task or self.prompt_name
        return PROMPTS[name] if name else None

    @property
    def inputs(self) -> list:
        """A list of texts or a list of lists of token ids."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input


def _asked(query: str) -> str:
    if not query.strip():
        raise ValueError("found blanks; expected a question")
    return query


class SearchRequest(BaseModel):
    """The whole pipeline: first stage, then the reranker over its best candidates. Other fields are refused."""

    model_config = ConfigDict(extra="forbid")  # a filter that is passed over would show what is to be hidden
    model: str | None = Field(None, description="a pipeline's name; any where one is loaded")
    query: Annotated[Query, AfterValidator(_asked)]
    top_n: int | None = Field(None, ge=1, description="documents returned, at most 1,000; default: 10")
    depth: int | None = Field(None, ge=1, le=1000, description="reranked, at least top_n; default: the pipeline's")
    rerank: bool | None = Field(None, description="false: the first stage alone")
    return_documents: bool | None = Field(None, description="false: ids and scores alone")


class ErrorBody(BaseModel):
    """What every error looks like, whatever the route."""

    error: dict[str, str | None] = Field(description="message, type, code, param")
    detail: str
    message: str


class Found(BaseModel):
    """One document of an answer."""

    index: int
    relevance_score: float
    document: Any = None


class RerankAnswer(BaseModel):
    """Best first; equal scores in the order of the request."""

    id: str
    object: str
    created: int
    model: str
    results: list[Found]
    usage: dict[str, int]
    meta: dict[str, Any]


class TeiFound(BaseModel):
    """One text of TEI's answer, which is a bare list."""

    index: int
    score: float
    text: str | None = None


class ListAnswer(BaseModel):
    """OpenAI's list: of embeddings, scores or models."""

    object: str
    data: list[dict[str, Any]]
    id: str | None = Field(None, description="of scores")
    created: int | None = Field(None, description="of scores: seconds since 1970")
    model: str | None = Field(None, description="of embeddings and scores: which one answered")
    usage: dict[str, int] | None = Field(None, description="of embeddings and scores")
    truncated: list[int] | None = Field(None, description="of embeddings: which texts were cut, where some were")


class SearchAnswer(BaseModel):
    """Documents by id, best first."""

    id: str
    object: str
    model: str
    results: list[dict[str, Any]]
    usage: dict[str, int]
    milliseconds: dict[str, float]
    meta: dict[str, Any] | None = Field(None, description="warnings, where something was cut")
