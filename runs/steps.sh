# What the flows share; sourced by them.

run() {
    printf '+ %s\n' "$(printf '%q ' "$@")"
    "$@"
}

# made FILE FROM COMMAND...: run the command unless FILE is there and newer than FROM.
made() {
    local file=$1 from=$2
    shift 2
    if [[ -e $file && $file -nt $from ]]; then
        echo "= $file is there"
    else
        run "$@"
    fi
}
