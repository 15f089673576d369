"""``prism-fast verify``: whether a set of shards is what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence

from prism_fast.errors import UserError
from prism_fast.recipes.command_line import CommandLine, Option


def run(arguments: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: the set has faults, or cannot be repaired.
    """
    line = CommandLine(
        program="prism-fast verify",
        description="Checks every file, member, row and hash of a set of shards; makes damaged shards again.",
        options=[
            Option(name="folder", description="the set", metavar="DIR"),
            Option(name="--repair", description="make the damaged shards again, then verify", kind=bool, default=False),
            Option(name="--deep", description="also decode every image", kind=bool, default=False),
            Option(name="--workers", description="processes; default: by size and cores", kind=int, metavar="N"),
            Option(
                name="--trust_code", description="a repair may run code named in config.yaml", kind=bool, default=False
            ),
            Option(name="--json", description="print JSON", kind=bool, default=False),
        ],
    )
    options = line.parse(arguments).options
    if options["folder"] is None:
        raise UserError("verify needs the folder of a set: prism-fast verify DIR")
    if options["workers"] is not None and options["workers"] < 1:
        raise UserError(f"--workers is {options['workers']}; it must be 1 or more")
    from prism_fast.progress import progress
    from prism_fast.verification.repair import repair
    from prism_fast.verification.run import verify
    from prism_fast.verification.text import counted, repair_text, report_json, report_text

    found = verify(options["folder"], deep=options["deep"], workers=options["workers"], progress=progress)
    repaired = None
    try:
        if not options["json"]:
            print(report_text(found))
        if options["repair"]:
            repaired = repair(found, trust_code=options["trust_code"], workers=options["workers"], progress=progress)
            if not options["json"]:
                print(f"{repair_text(repaired)}\n{report_text(repaired.after)}")
    finally:  # what was found is told even where it cannot be repaired
        if options["json"]:
            print(json.dumps(report_json(found, repaired), indent=1))
    now = found if repaired is None else repaired.after
    if now.sound:
        return
    what = f"{counted(len(now.faults), 'fault')} in {now.folder}, the first: {now.faults[0]}"
    if repaired is not None:
        raise UserError(f"{what}; a repair does not mend that: synthesize into another folder")
    raise UserError(f"{what}; `prism-fast verify {now.folder} --repair` makes damaged shards again")
