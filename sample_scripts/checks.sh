# shellcheck shell=bash
# Sourced by the common.sh files: checks of settings. Each ends the script with one line and status 2.

refuse() {
    echo "error: $*" >&2
    exit 2
}

# fixed NAME=VALUE...: sets what a script is about; another value from the environment is refused.
fixed() {
    local pair name value
    for pair; do
        name=${pair%%=*} value=${pair#*=}
        if [[ ${!name:-$value} != "$value" ]]; then
            refuse "$name is '${!name}', and this script is for $value alone; take another one, or" \
                "leave $name unset."
        fi
        printf -v "$name" %s "$value"
    done
}

# one_of NAME VALUES...
one_of() {
    local value
    for value in "${@:2}"; do
        [[ ${!1} == "$value" ]] && return
    done
    refuse "$1 is '${!1}', expected one of: ${*:2}."
}

# each_of NAME VALUES...: a list, separated by spaces, with at least one of them.
each_of() {
    local words word
    read -ra words <<<"${!1}"
    for word in "${words[@]:-}"; do
        [[ -n $word && " ${*:2} " == *" $word "* ]] ||
            refuse "$1 is '${!1}', expected one or more of: ${*:2}."
    done
}

# numbers NAME...: each is a whole number of 1 or more.
numbers() {
    local name
    for name; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] ||
            refuse "$name is '${!name}', expected a whole number of 1 or more."
    done
}
