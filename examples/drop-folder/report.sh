#!/bin/sh
# report.sh JOB COMMAND...: run COMMAND, and drop what it printed into the inbox under the name JOB.
#
# Needs no fsinbox and no Python: put it before a command in a crontab. The inbox is $FSINBOX_DIR, or ./inbox.
set -u
drop=${FSINBOX_DIR:-inbox}/drop

job=${1:-}
case $job in
'' | .* | */* | *.tmp | *.part | *.swp | *~ | 4913 | *[!A-Za-z0-9._-]*) # left alone in drop/, or no plain names
    echo "report.sh: '$job' cannot be the name of a job: use letters, digits, _ and -" >&2
    exit 2
    ;;
esac
shift
[ $# -gt 0 ] || { echo "usage: report.sh JOB COMMAND..." >&2 && exit 2; }

draft=$drop/.$job.$$ # hidden, so left alone; and on the same file system, so that mv is a rename
trap 'rm -f "$draft"' EXIT
trap 'exit 1' HUP INT TERM

{ "$@" && echo "ok" || echo "failed with status $?"; } >"$draft" 2>&1
touch -m -t 200001010000 "$draft" # older than its rename: so the consumer sees that it is finished

# The content reaches the disk before the name. (On Btrfs, flush drop/ with `sync -f`: docs/reliability.md.)
sync "$draft" && mv -f "$draft" "$drop/$job" && sync "$drop"
