"""The commands: in which group of the help each stands, in which module it is, and its summary. Imports
nothing, so that `fsinbox --help` is there at once."""

GROUPS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Produce",
        (
            ("init", "creating", "Create an inbox."),
            ("add", "commands", "Queue VALUE for KEY."),
            ("watch", "watching", "Queue each file of DIR when it changes."),
            ("import", "archiving", "Queue the elements of an export."),
            ("migrate", "migrating", "Queue the rows of a database table, oldest first."),
        ),
    ),
    (
        "Consume",
        (
            ("consume", "consume", "Process elements until stopped."),
            ("wait", "steering", "Wait until KEY, or everything, is done."),
        ),
    ),
    (
        "Look",
        (
            ("status", "seeing", "Tell how the inbox stands, with a verdict."),
            ("ls", "listing", "List the elements."),
            ("show", "seeing", "Print the payload of KEY."),
            ("failed", "listing", "List the failed elements, and why they failed."),
            ("top", "top", "Watch the inbox on the terminal."),
            ("web", "serving", "Show the inbox in a browser."),
            ("metrics", "seeing", "Print metrics for Prometheus, once."),
        ),
    ),
    (
        "Steer",
        (
            ("retry", "elements", "Try KEY again now, whatever its state."),
            ("requeue", "elements", "The same as retry."),
            ("replay", "elements", "Queue again what was done and is kept in done/."),
            ("discard", "elements", "Remove elements for good: failed ones, or others."),
            ("purge", "elements", "Remove all that is failed or done."),
            ("hold", "steering", "Put KEY on hold: it is not taken."),
            ("release", "steering", "End the hold of KEY."),
            ("pause", "steering", "Have the consumer take nothing more."),
            ("resume", "steering", "End a pause."),
            ("limit", "limits", "Bound the inbox, or print its bounds."),
        ),
    ),
    (
        "Keep up",
        (
            ("doctor", "commands", "Measure this file system, and check the inbox."),
            ("export", "archiving", "Write elements to an archive."),
            ("settings", "settings", "Print what each option is set to, and by what."),
            ("completion", "completion", "Print what makes a shell complete a line."),
            ("help", "commands", "Show the help of COMMAND."),
        ),
    ),
)

HOMES = {name: home for _, commands in GROUPS for name, home, _ in commands if home != "commands"}
"""Command -> its module, if that is not `commands`: imported when it is run, or for its help."""

NAMES = sorted(name for _, commands in GROUPS for name, _, _ in commands)
