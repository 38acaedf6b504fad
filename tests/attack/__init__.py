"""The command line under attack: more than a thousand command lines, each judged by rules and not by its own answer."""
