"""Settings to spoil."""

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Valid plain settings."""
    return tiny.run_settings(tmp_path_factory.mktemp("run"))
