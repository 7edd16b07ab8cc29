"""Where an export may not be written: into the output's own folders, and over files that no export has made.

Told before anything is written, as far as names are known by then.
"""

from __future__ import annotations

from collections.abc import Iterable

from consistory_ray.errors import InputError, Problem
from consistory_ray.export.records import MANIFEST_CSV, MANIFEST_JSON, Journal
from consistory_ray.output.storage import FOLDERS, OutputStore

_SHOWN = 5
_STRANGER = "no export has made this file: move it away, or give another folder"


def refuse_own_folders(source: OutputStore, to: OutputStore) -> None:
    """Refuse to write where the output keeps what it renders.

    Raises:
        InputError: the export's folder is the output, or one of its own.
    """
    inside = to.root == source.root or any(f"{to.root}/".startswith(f"{source.root}/{folder}/") for folder in FOLDERS)
    if type(source.fs) is type(to.fs) and inside:
        fix = "give a folder of its own: this one is where the output keeps what it renders"
        raise InputError("the export cannot be written there", [Problem("--to", to.url, fix)])


def refuse_strangers(there: Iterable[str], names: Iterable[str], journal: Journal) -> None:
    """Refuse to write over files that no export has made.

    Args:
        there: files of the folder.
        names: what is to be written, the manifest left out.
        journal: what exports have made. The manifest is nobody's as long as there is none.

    Raises:
        InputError: there are some.
    """
    found = set(there)
    manifest = (MANIFEST_CSV, MANIFEST_JSON) if journal.is_new else ()
    strangers = [name for name in (*names, *manifest) if name in found and name not in journal.records]
    if strangers:
        more = f" ({len(strangers)} of them)" if len(strangers) > 1 else ""
        problems = [Problem("--to", name, _STRANGER) for name in strangers[:_SHOWN]]
        raise InputError(f"files would be overwritten{more}", problems)


def refuse_one_name(name: str, folded: set[str]) -> None:
    """Refuse a product that has the name of another file, and take its name down.

    Args:
        name: of the product.
        folded: names that are taken, without case.

    Raises:
        InputError: it is taken.
    """
    if name.casefold() in folded:
        raise InputError("two files would get one name", [Problem("--layout", name, "use another layout")])
    folded.add(name.casefold())
