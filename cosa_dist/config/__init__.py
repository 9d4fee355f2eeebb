"""One run described as frozen, validated models; recipes by name; dotted overrides on a command line."""
