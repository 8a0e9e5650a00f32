"""The command line: thin functions over everything else, each loaded when its command is typed."""
