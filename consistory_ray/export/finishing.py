"""What is done with every picture beside its shape: looked at, marked, signed. All of it is checked before anything is
read or written, and what it depends on is part of what an export remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consistory_ray.errors import InputError, Problem
from consistory_ray.export.own_code import checks as named_checks
from consistory_ray.export.own_code import digest_of, watermark
from consistory_ray.export.pictures import Step

if TYPE_CHECKING:
    from consistory_ray.export.making import Sign
    from consistory_ray.export.selection import Source
    from consistory_ray.export.signing import PictureSigner


@dataclass(frozen=True)
class Finish:
    """What an export takes.

    Attributes:
        marks: steps at the end of the others.
        checks: names of the functions that may reject a picture.
        sign: what signs files; None for nothing.
        further: what pictures depend on through all of these, see :class:`.options.PictureOptions`.
    """

    marks: tuple[Step, ...] = ()
    checks: tuple[str, ...] = ()
    sign: Sign | None = None
    further: tuple[tuple[str, str], ...] = ()


def finish(
    *,
    mark: str | None = None,
    checks: Sequence[str] = (),
    credentials: tuple[Path, Path] | None = None,
    with_prompt: bool = False,
    timestamps: str | None = None,
) -> Finish:
    """Make ready what is asked for.

    Args:
        mark: name of a watermark's function.
        checks: names of functions that look at each picture.
        credentials: certificates and key, both PEM.
        with_prompt: whether signatures tell the prompt.
        timestamps: address of a time stamp authority.

    Raises:
        InputError: some of it cannot be used.
    """
    alone = {"--c2pa-prompt": with_prompt, "--c2pa-tsa": timestamps is not None}
    if credentials is None and any(alone.values()):
        problems = [Problem(name, "", "give --c2pa CERT KEY, too") for name, given in alone.items() if given]
        raise InputError("there is nothing to sign with", problems)
    marks = () if mark is None else (watermark(mark),)
    names = named_checks(checks)
    depends = [(f"code {name}", digest_of(name)) for name in (*names, *([mark] if mark else []))]
    if credentials is None:
        return Finish(marks, names, None, tuple(depends))
    from consistory_ray.export.credentials import read_credentials
    from consistory_ray.export.signing import PictureSigner

    signer = PictureSigner(read_credentials(*credentials), timestamps)
    depends += [(f"c2pa {name}", value) for name, value in signer.depends_on().items()]
    depends.append(("c2pa prompt", "told" if with_prompt else ""))
    return Finish(marks, names, _signing(signer, with_prompt), tuple(depends))


def _signing(signer: PictureSigner, with_prompt: bool) -> Sign:
    from consistory_ray.export.signing import Claim

    def sign(data: bytes, file: str, sources: Sequence[Source]) -> bytes:
        one = sources[0] if len(sources) == 1 else None
        models = sorted({(source.model, source.model_fingerprint) for source in sources})
        model, fingerprint = models[0] if len(models) == 1 else ("several models", "")
        prompt = one.prompt if one is not None and with_prompt else None
        claim = Claim(file, "" if one is None else one.asset_id, model, fingerprint, prompt)
        return signer.sign(data, "webp" if file.endswith(".webp") else "png", claim)

    return sign
