# Before the head stops: asks the coordinator to stop, and waits until it is gone, for $1 seconds at most. It finishes the
# batches in hand and writes its record; nobody else would ask it, `ray start` takes it down with a SIGKILL.
#
# A coordinator that was asked already, by Ray because its job was stopped, is only waited for: asked twice, it leaves at
# once. It says so in its log, which is its standard error.
proc="${PROC:-/proc}"

coordinators() {
  local file words i
  for file in "$proc"/[0-9]*/cmdline; do
    words=()
    { mapfile -d '' -t words < "$file"; } 2> /dev/null || continue
    for i in 0 1; do
      if [[ "${words[i]##*/}" == consistory-ray && "${words[i + 1]}" =~ ^(render|retry)$ ]]; then
        file="${file%/cmdline}"
        echo "${file##*/}"
        break
      fi
    done
  done
}

asked_before() {
  [ -f "$proc/$1/fd/2" ] && grep -qs 'once more to leave at once' "$proc/$1/fd/2"
}

deadline=$((SECONDS + $1))
asked=" "
if [ -n "$(coordinators)" ]; then sleep "${SETTLE:-5}"; fi # Ray's request may be on its way
while pids="$(coordinators)" && [ -n "$pids" ] && [ "$SECONDS" -lt "$deadline" ]; do
  for pid in $pids; do
    if [[ "$asked" != *" $pid "* ]]; then
      asked+="$pid "
      asked_before "$pid" || kill -TERM "$pid"
    fi
  done
  sleep 1
done
exit 0
