"""What a preference pair is, how bad data is named, and the known category vocabularies. No I/O here."""

from dataclasses import dataclass

from jaxalign.errors import JaxalignError

PKU_CATEGORIES = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)

BEAVERTAILS_CATEGORIES = (
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)

VOCABULARIES = {"pku": PKU_CATEGORIES, "beavertails": BEAVERTAILS_CATEGORIES}

NO_CATEGORY = "(none)"  # the row of tables for pairs without a category; never a category name
RESERVED_NAMES = (  # rows of tables that no category may be called
    *("all", "all prompts", "all pairs", NO_CATEGORY, "(no category)", "(benign)"),
    *("mean of categories", "worst category", "best-to-worst gap"),
)
IDENTICAL = "identical responses"  # the one reason of errors that tables count by category


class DataError(JaxalignError, ValueError):
    """Bad input data, said as where, what was got, what was expected, and the remedy.

    `reason` is a short fixed phrase by which reports count; `origin` is "file:row" or the file alone;
    `categories` are those of the pair, if it got that far.
    """

    def __init__(
        self,
        reason: str,
        *,
        origin: str,
        got: str,
        expected: str,
        remedy: str,
        field: str = "",
        categories: tuple[str, ...] = (),
    ) -> None:
        self.reason = reason
        self.categories = categories
        self.origin = origin
        where = f"{origin}: field '{field}'" if field else origin
        super().__init__(f"{where}: {reason}: got {got}, expected {expected}; {remedy}")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sound row that a format or view leaves out by its own rule. Counted by reason, never an error."""

    origin: str
    reason: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: a prompt and two responses. Without safety labels: no categories, both flags False.

    A score says how good a response is, the higher the better; a pair has both or neither.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    categories: tuple[str, ...]
    chosen_unsafe: bool
    rejected_unsafe: bool
    origin: str
    chosen_score: float | None = None
    rejected_score: float | None = None


def prompt_key(prompt: tuple[Message, ...]) -> str:
    """The prompt without system turns, letter case and spacing: two prompts with one key are the same."""
    turns = (f"{m.role}: {' '.join(m.content.casefold().split())}" for m in prompt if m.role != "system")
    return "\n".join(turns)


def opening_key(prompt: tuple[Message, ...]) -> str:
    """The key of the first user turn: conversations that open alike belong on one side of a split."""
    return prompt_key(next(((m,) for m in prompt if m.role == "user"), prompt))
