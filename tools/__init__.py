"""What the verbs of the Makefile call. Only the standard library here: some of them run before there is an environment."""
