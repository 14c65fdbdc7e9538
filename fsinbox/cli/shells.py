"""How shells ask for completions. The scripts are click's, but for what they would do to keys that hold
special characters."""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, FishComplete, add_completion_class, split_arg_string


@add_completion_class
class Bash(BashComplete):
    """Asks with the line as it was typed, since bash cuts words at `:` and `=`, and quotes what it
    inserts."""

    source_template = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} breaks=${COMP_WORDBREAKS//[^@:=]/} lead='' word type value
    COMPREPLY=()
    word=${line##*[[:space:]]}
    [[ $word == [\\'\\"]* ]] && return  # what would be inserted is quoted by itself
    # Of a word that bash cuts, only the last part is replaced.
    [[ $breaks ]] && lead=${word%%"${word##*[$breaks]}"}
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                printf -v value %%q "$value"
                COMPREPLY+=("${value#"$lead"}")
                ;;
        esac
    done < <(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        if not line[-1:].isspace() and words:
            return words[:-1], words[-1]
        return words, ""


@add_completion_class
class Fish(FishComplete):
    """click's, but a key with a comma is not cut."""

    source_template = FishComplete.source_template.replace('string split "," ', 'string split --max 1 "," ')
