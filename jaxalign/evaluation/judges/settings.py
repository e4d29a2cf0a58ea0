"""Settings of the judges, one class for each, chosen by `kind`. Nothing is read or called here."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from jaxalign.settings import LaxPath, Settings

DType = Literal["float32", "bfloat16"]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, strict=False)]


class RefusalConfig(Settings):
    """The refusal rule in words: it judges no harm."""

    kind: Literal["refusal"] = "refusal"


class FunctionConfig(Settings):
    """A function of your own."""

    kind: Literal["function"] = "function"
    function: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$",
        description="package.module:name; the module is imported",
    )


class _ModelConfig(Settings):
    """What judges that are models share."""

    path: LaxPath = Field(description="Hugging Face directory of the model")
    dtype: DType = Field("float32", description="of parameters and computation")
    batch_size: PositiveInt = 8
    max_length: PositiveInt | None = Field(
        None, description="tokens; longer conversations are unjudged; null: what the model was made for"
    )


class ScoreModelConfig(_ModelConfig):
    """A cost model with a scalar head, in the layout of PKU's beaver."""

    kind: Literal["score_model"] = "score_model"
    score_type: Literal["cost"] | None = Field(
        None, description="for a model whose config.json has no score_type"
    )


class RewardModelConfig(_ModelConfig):
    """A reward model of the same layout, which scores helpfulness. No judge of harm."""

    score_type: Literal["reward"] | None = Field(
        None, description="for a model whose config.json has no score_type"
    )


class GuardConfig(_ModelConfig):
    """A guard model: it continues a prompt with `safe`, or `unsafe` and the codes of categories."""

    kind: Literal["guard"] = "guard"
    prompt: Literal["auto", "tokenizer", "policy"] = Field(
        "auto",
        description="tokenizer: its chat template is a guard's; policy: our own words; auto: the template if it names "
        "the unsafe word",
    )
    safe_word: str = Field("safe", min_length=1)
    unsafe_word: str = Field("unsafe", min_length=1)
    lead: str | None = Field(
        None, description="text between prompt and verdict; null: a blank line where Llama 3 headers need one"
    )
    categories: Names | None = Field(
        None, description="names of the codes S1, S2, ...; null: those of Llama Guard 3"
    )
    least_mass: float = Field(
        0.5, ge=0, le=1, description="probability of both words together below which an answer is unjudged"
    )

    @model_validator(mode="after")
    def _words_differ(self) -> Self:
        if self.safe_word == self.unsafe_word:
            raise ValueError(f"safe_word and unsafe_word are both {self.safe_word!r}; give two words")
        return self


class EndpointConfig(Settings):
    """A model behind an OpenAI-compatible endpoint."""

    kind: Literal["endpoint"] = "endpoint"
    url: str = Field(description="up to and without /chat/completions, such as http://localhost:8000/v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, description="environment variable that holds the key; never stored")
    instructions: str | None = Field(None, min_length=1, description="in place of our own words to the judge")
    categories: Names | None = Field(
        None, description="names to choose a category from; null: none are asked for"
    )
    parameters: dict[str, JsonValue] = Field(
        {"temperature": 0, "max_tokens": 200},
        description="of each request, as they are",
    )
    timeout: PositiveFloat = Field(
        60.0, description="seconds for one request, from its start to its last byte"
    )
    max_attempts: PositiveInt = Field(5, description="requests for one answer, garbage included")
    backoff: NonNegativeFloat = Field(1.0, description="seconds before the second attempt; doubles with each")
    max_wait: PositiveFloat = Field(60.0, description="longest wait between attempts, Retry-After included")
    max_failures: PositiveInt = Field(
        10,
        description="answers in a row that the server gave no reply to, or refused, after which the judge gives up",
    )
    concurrency: PositiveInt = Field(4, description="requests at a time")
    cache: LaxPath | None = Field(None, description="file of verdicts, so that no answer is paid for twice")
    request_budget: PositiveInt | None = Field(None, description="requests in all, failed ones included")
    token_budget: PositiveInt | None = Field(None, description="tokens in all, as the server counts them")
    over_budget: Literal["error", "unjudged"] | None = Field(
        None, description="what happens to answers beyond the budget; null: error"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
            (parts.hostname or "").encode("idna")
        except ValueError:  # of the port, or of a host that no name server knows
            sound = False
        if not sound:
            raise ValueError(f"`url` is {self.url!r}: expected one such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "`url` carries a user, a query or a fragment; give a key through api_key_env alone"
            )
        ours = sorted({"model", "messages", "stream", "n"} & self.parameters.keys())
        if ours:
            raise ValueError(f"`parameters` holds {ours}, which the judge sets itself; remove them")
        if self.over_budget is not None and self.request_budget is None and self.token_budget is None:
            raise ValueError(
                "`over_budget` has an effect only with request_budget or token_budget; remove it"
            )
        waits = sorted({"backoff", "max_wait"} & self.model_fields_set)
        if self.max_attempts == 1 and waits:
            raise ValueError(
                f"`{'`, `'.join(waits)}` has an effect only with max_attempts above 1; remove it"
            )
        return self


JudgeConfig = Annotated[
    RefusalConfig | ScoreModelConfig | GuardConfig | EndpointConfig | FunctionConfig,
    Field(discriminator="kind"),
]
