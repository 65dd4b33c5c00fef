"""`lrpilot list | card | simulate | report | collect`, as a shell calls it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lrpilot.command.cards import card_lines, list_lines
from lrpilot.command.folders import collect, report
from lrpilot.command.simulation import PROBLEM, simulate, simulation_csv, simulation_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after an error, which is printed."""
    given = _parser().parse_args(arguments)
    try:
        for line in _lines(given):
            print(line)
    except (ImportError, OSError, ValueError) as error:
        print(f"lrpilot {given.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _lines(given: argparse.Namespace) -> Sequence[str]:
    if given.command == "list":
        return list_lines()
    if given.command == "card":
        return card_lines(given.policy)
    if given.command == "simulate":
        steps = simulate(given.policy, total_steps=given.total_steps, lr=given.lr, seed=given.seed)
        return simulation_csv(steps) if given.csv else simulation_lines(steps, given.policy)
    if given.command == "report":
        return [line for folder in given.runs for line in report(folder)]
    return collect(given.folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lrpilot", description=__doc__.split(",")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")

    policy_help = "a policy that ships, a policy file, or a run folder"
    command("list", "list the policies that ship with the package")
    card = command("card", "say what a policy is, and what it was trained on")
    card.add_argument("policy", help=policy_help)
    simulated = command("simulate", f"draw a policy's learning rate over {PROBLEM}")
    simulated.add_argument("policy", help=policy_help)
    simulated.add_argument("total_steps", type=int, help="optimizer steps of the run")
    simulated.add_argument("--lr", type=float, default=0.1, help="initial one; default 0.1")
    simulated.add_argument("--seed", type=int, default=0, help="of the run; default 0")
    simulated.add_argument("--csv", action="store_true", help="print step, lr and loss instead")
    reported = command("report", "print the tables of evaluations, and draw their figures anew")
    reported.add_argument("runs", nargs="+", type=Path, help="run folders of evaluate.py")
    collected = command("collect", "gather a sweep's summaries in summaries.csv and a table")
    collected.add_argument("folder", type=Path, help="the folder of a sweep of train_agent.py")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
