"""The fake endpoint, reached without any proxy of the environment."""

from collections.abc import Iterator

import pytest

from tests.evaluation.judges.fake_endpoint import FakeEndpoint


@pytest.fixture(autouse=True, scope="session")
def no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as server:
        yield server
