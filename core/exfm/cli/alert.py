"""`exfm alert`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from exfm.cli.context import RUN, print_json
from exfm.errors import RunError

FIRED = 3
"""Exit status where a rule fires: neither a failure, 1, nor a wrong input, 2."""


def command(
    run: RUN,
    rules: Annotated[str, typer.Argument(metavar="RULES", help="A YAML file of rules, any fsspec URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Checks a run by rules, posts alerts to a webhook, and ends with status 3 if a rule fires."""
    from exfm.watching.alert_rules import read_rules
    from exfm.watching.alerts import check_alerts, post_alerts, webhook_url
    from exfm.watching.run_status import RunWatch

    file = read_rules(rules)
    if file.webhook is not None:
        webhook_url(file.webhook)  # a missing URL is found before the first alert
    watch = RunWatch(run)
    try:
        status = watch.look()
    finally:
        watch.close()
    checked = check_alerts(file.rules, status)
    if as_json:
        entries = [asdict(alert) for alert in checked.alerts]
        print_json({"run": status["run"], "at": status["at"], "alerts": entries, "missing": list(checked.missing)})
    else:
        for alert in checked.alerts:
            typer.echo(str(alert))
        for text in checked.missing:
            typer.echo(f"no value yet: {text}")
        typer.echo(f"{len(checked.alerts)} alerts; {checked.looked} values checked by {len(file.rules)} rules")
    if not checked.alerts:
        return
    if file.webhook is not None:
        try:
            post_alerts(file.webhook, status, checked.alerts)
        except RunError as error:
            # Said, and no other status: the rule has fired, which whoever called wants to know most.
            typer.echo(f"error: {error}", err=True)
    raise typer.Exit(FIRED)
