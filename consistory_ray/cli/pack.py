"""The command that packs stored subjects: :func:`~consistory_ray.engine.packing.pack_subject` with a display."""

from __future__ import annotations

from consistory_ray.cli.common import err, exits, out, print_json
from consistory_ray.cli.options import AsJson, Cache, CodecOption, InPlace, PackedOutput, ProfileToPack
from consistory_ray.engine.events import size
from consistory_ray.watch.reports import line


@exits
def pack(
    cache: Cache,
    profile: ProfileToPack = "fast",
    codec: CodecOption = None,
    output: PackedOutput = None,
    in_place: InPlace = False,
    as_json: AsJson = False,
) -> None:
    """Pack a stored subject for a profile: what its scenes do not read goes, the rest is packed by a codec.

    A job takes the new one with `from:`. Packing again with another codec adds errors to what the first one lost.
    """
    from consistory_ray.engine.packing import pack_subject

    with err.status("packing"):
        packed = pack_subject(cache, output, profile=profile, codec=codec, in_place=in_place)
    if as_json:
        print_json(packed.to_dict())
        return
    shrunk = f"{size(packed.bytes_before)} before, {size(packed.bytes_after)} after"
    line(out, f"{packed.output}: {shrunk}, for {packed.profile or 'settings of its own'}, packed as {packed.codec}")
