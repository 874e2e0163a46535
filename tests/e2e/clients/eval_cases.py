"""Prompts with the reference's answers, as the client scripts need them."""
import json
import sys


def arguments():
    """(gateway address, model name, eval cases) from the command line."""
    address, model, path = sys.argv[1:4]
    with open(path, encoding="utf-8") as lines:
        return address, model, [json.loads(line) for line in lines]


def facts(cases, count):
    """The first `count` one-turn questions without reasoning."""
    return [c for c in cases if c["skill"] == "fact" and not c["thinking"]][:count]


def check(what, found, expected):
    """Ends the script with both sides when they differ."""
    if found != expected:
        sys.exit(f"{what}: {found!r}, expected {expected!r}")
