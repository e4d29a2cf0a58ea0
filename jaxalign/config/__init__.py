"""The configuration of a run: typed frozen settings, read from YAML."""

from jaxalign.config.files import dump_config, load_config, load_settings, parse_config
from jaxalign.config.schema import Config, ConfigError

__all__ = ["Config", "ConfigError", "dump_config", "load_config", "load_settings", "parse_config"]
