"""Settings of judges: chosen by kind, and no option without effect."""

import pytest
from pydantic import TypeAdapter, ValidationError

from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.settings import JudgeConfig

ADAPTER = TypeAdapter(JudgeConfig)
ENDPOINT = {"kind": "endpoint", "url": "http://localhost:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "refusal"},
        {"kind": "function", "function": "package.module:Class.method"},
        {"kind": "score_model", "path": "model", "dtype": "bfloat16"},
        {"kind": "guard", "path": "model", "categories": ["one", "two"]},
        {**ENDPOINT, "cache": "verdicts.sqlite", "request_budget": 10, "over_budget": "unjudged"},
    ],
)
def test_settings_survive_json(values):
    config = ADAPTER.validate_python(values)
    assert config.kind == values["kind"]
    assert ADAPTER.validate_json(ADAPTER.dump_json(config)) == config


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"kind": "oracle"}, "does not match any of the expected tags"),
        ({"kind": "refusal", "threshold": 0.5}, "Extra inputs are not permitted"),
        ({"kind": "function", "function": "module.name"}, "String should match pattern"),
        ({"kind": "score_model", "path": "m", "score_type": "reward"}, "Input should be 'cost'"),
        ({"kind": "guard", "path": "m", "safe_word": "unsafe"}, "both 'unsafe'; give two words"),
        ({"kind": "guard", "path": "m", "categories": []}, "at least 1 item"),
        ({**ENDPOINT, "url": "localhost:8000"}, "expected one such as http://localhost:8000/v1"),
        *(
            ({**ENDPOINT, "url": url}, "expected one such as http://localhost:8000/v1")
            for url in (
                "http://localhost:abc/v1",
                "http://localhost:99999/v1",
                "http://a..b/v1",
                "http://[::1/v1",
            )
        ),
        ({**ENDPOINT, "url": "http://u:p@localhost/v1"}, "give a key through api_key_env alone"),
        ({**ENDPOINT, "url": "http://localhost/v1?key=1"}, "give a key through api_key_env alone"),
        ({**ENDPOINT, "parameters": {"stream": True}}, r"`parameters` holds \['stream'\]"),
        ({**ENDPOINT, "over_budget": "unjudged"}, "effect only with request_budget or token_budget"),
        ({**ENDPOINT, "max_attempts": 1, "backoff": 2.0}, "`backoff` has an effect only with max_attempts"),
        ({**ENDPOINT, "timeout": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, error):
    with pytest.raises(ValidationError, match=error):
        ADAPTER.validate_python(values)


def test_a_judge_is_made_from_its_settings():
    assert make_judge(ADAPTER.validate_python({"kind": "refusal"})).name == "refusal rule"
    assert make_judge(ADAPTER.validate_python(ENDPOINT)).name == "endpoint model m"
