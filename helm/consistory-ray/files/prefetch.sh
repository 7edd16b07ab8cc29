# Downloads $MODEL at $REVISION into the hub cache under $HF_HOME; a second pod that finds it there downloads nothing.
set -o noglob  # the patterns are for the hub, not for this shell
patterns=()
for pattern in $INCLUDE; do patterns+=(--include "$pattern"); done
for pattern in $EXCLUDE; do patterns+=(--exclude "$pattern"); done
hf download "$MODEL" --revision "$REVISION" "${patterns[@]}" --quiet
# Offline, a model is looked up under its main branch. Let that name the revision that was asked for.
if [ "$REVISION" != main ]; then
  refs="$HF_HOME/hub/models--${MODEL//\//--}/refs"
  commit="$REVISION"
  if [ -f "$refs/$REVISION" ]; then commit="$(cat "$refs/$REVISION")"; fi
  mkdir -p "$refs"
  printf %s "$commit" > "$refs/main.$HOSTNAME"
  mv "$refs/main.$HOSTNAME" "$refs/main"
fi
