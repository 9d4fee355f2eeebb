"""One run described as frozen, validated models; recipes by name; dotted overrides on a command line."""

from cosa_dist.config.schema import RunConfig

__all__ = ["RunConfig"]
