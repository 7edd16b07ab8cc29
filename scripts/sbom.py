"""The bill of materials: what is installed with this package, under which licences, with which known holes.

    python scripts/sbom.py --output sbom.json     CycloneDX 1.6, JSON
    python scripts/sbom.py --licences             docs/licences.md, to stdout
    python scripts/sbom.py --check                licences are all on the list below, docs/licences.md is current
    python scripts/sbom.py --audit                known vulnerabilities of constraints.txt, by pip-audit

Run it with the Python of an environment that has the package with its development extra. What is listed is what runs in
the image: the package's dependencies and those of the extras that cluster/Dockerfile installs.

Exit code 1: a licence outside the list, a stale page, or a vulnerability. 2: the vulnerability database does not
know (all of) the packages, so that nothing can be said.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from license_expression import ExpressionError, LicenseExpression, LicenseWithExceptionSymbol, get_spdx_licensing

sys.path.insert(0, str(Path(__file__).resolve().parent))
from constraints import NAME, closure

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
    "Unlicense",
    "Zlib",
}
"""Licences that ask for attribution, or (MPL-2.0) for the source of changed files, and nothing more."""

FREE_TEXT = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}
"""What packages write instead of an SPDX expression. BSD without a number is taken as its usual form."""

EXTRAS = ["s3", "gcs", "azure", "nvml", "compel"]
HEADER = """\
# Licences of dependencies

What the images install, `consistory-ray[s3,gcs,azure,nvml,compel]`, in the versions of `constraints.txt`, with torch's
CPU build: its CUDA build adds NVIDIA's libraries, under NVIDIA's own terms. The bundled model's weights are part of
this project and under its licence. A bill of materials in CycloneDX form is made by `python scripts/sbom.py --output
sbom.json`.

This page is written by `python scripts/sbom.py --licences`, with Python 3.11.

| Package | Licence |
|---|---|
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One dependency.

    Attributes:
        licence: SPDX expression; or, in quotes, what its metadata say.
        needs: names of those of the listed packages that it needs.
    """

    name: str
    version: str
    licence: str
    needs: tuple[str, ...]


def packages() -> list[Package]:
    """The dependencies that are installed here, by name."""
    found = closure(EXTRAS)
    listed = []
    for name, distribution in sorted(found.items()):
        wanted = {re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in distribution.requires or []}
        needs = sorted({re.sub(r"[-_.]+", "-", item).lower() for item in wanted} & found.keys())
        version = re.sub(r"[+].*", "", distribution.version)
        listed.append(Package(name, version, licence_of(distribution), tuple(needs)))
    return listed


def licence_of(distribution: metadata.Distribution) -> str:
    """The SPDX expression of a distribution; in quotes what it says where that cannot be told."""
    values = distribution.metadata
    classifiers = [text.split(" :: ")[-1] for text in values.get_all("Classifier") or [] if text.startswith("License")]
    texts = [values.get("License-Expression") or "", (values.get("License") or "").strip(), " AND ".join(classifiers)]
    texts += classifiers if len(classifiers) == 1 else []
    for text in texts:
        if spdx := as_spdx(text):
            return spdx
    joined = " OR ".join(spdx for text in classifiers if (spdx := as_spdx(text)))
    return joined or f'"{next((text.splitlines()[0] for text in texts if text), "nothing")}"'


@lru_cache(maxsize=1)
def _spdx() -> Any:
    """The parser of licence expressions, which takes a while to make."""
    return get_spdx_licensing()


def as_spdx(text: str) -> str:
    """A licence text as an SPDX expression, empty if it is none."""
    text = FREE_TEXT.get(text.strip().lower(), text.strip())
    if not text or "\n" in text:
        return ""
    try:
        parsed = _spdx().parse(text, validate=True)
    except ExpressionError:
        return ""
    return str(parsed) if parsed is not None else ""


def is_allowed(licence: str) -> bool:
    """Whether an expression can be met with licences of the list: all parts of an AND, one of an OR."""
    if licence.startswith('"'):
        return False
    return _met(_spdx().parse(licence))


def _met(expression: LicenseExpression) -> bool:
    if isinstance(expression, LicenseWithExceptionSymbol) or not getattr(expression, "args", ()):
        return str(expression) in ALLOWED
    results = [_met(part) for part in expression.args]
    return any(results) if expression.operator.strip() == "OR" else all(results)


def licence_page(listed: Iterable[Package]) -> str:
    """docs/licences.md."""
    return HEADER + "".join(f"| {item.name} | {item.licence} |\n" for item in listed)


def bill(listed: Iterable[Package]) -> str:
    """The CycloneDX document."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    licences = LicenseFactory()
    own = metadata.metadata(NAME)
    root = Component(
        name=NAME,
        version=own["Version"],
        type=ComponentType.APPLICATION,
        bom_ref=NAME,
        licenses=[licences.make_from_string(own["License-Expression"])],
        purl=PackageURL("pypi", name=NAME, version=own["Version"]),
    )
    document = Bom()
    document.metadata.component = root
    components = {
        item.name: Component(
            name=item.name,
            version=item.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"{item.name}=={item.version}",
            licenses=[licences.make_from_string(item.licence.strip('"'))],
            purl=PackageURL("pypi", name=item.name, version=item.version),
        )
        for item in listed
    }
    for item in listed:
        document.components.add(components[item.name])
        document.register_dependency(components[item.name], [components[name] for name in item.needs])
    document.register_dependency(root, components.values())
    return str(JsonV1Dot6(document).output_as_string(indent=2))


def check(listed: list[Package]) -> int:
    """Say what is wrong with the licences."""
    wrong = [item for item in listed if not is_allowed(item.licence)]
    for item in wrong:
        print(f"{item.name} {item.version}: the licence {item.licence} is not on the list in scripts/sbom.py")
    comparable = sys.version_info[:2] == (3, 11)
    stale = comparable and (not PAGE.exists() or PAGE.read_text() != licence_page(listed))
    if stale:
        print(f"stale: {PAGE.relative_to(ROOT)}: python scripts/sbom.py --licences > {PAGE.relative_to(ROOT)}")
    return int(bool(wrong) or stale)


def audit() -> int:
    """Ask for known vulnerabilities of what constraints.txt lists."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"), "--format", "json"]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        asked = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        print(f"NOT CHECKED: pip-audit failed: {reason}")
        return 2
    return say(asked)


def say(asked: list[dict[str, Any]]) -> int:
    """Tell what pip-audit found. It calls packages that its database does not have clean: here they are not."""
    unknown = [item for item in asked if "skip_reason" in item]
    holes = [(item, hole) for item in asked for hole in item.get("vulns", [])]
    for item, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no version"
        print(f"{item['name']} {item['version']}: {hole['id']}, fixed in {fixed}")
    if unknown or not asked:
        first = f": {unknown[0]['name']}: {unknown[0]['skip_reason']}" if unknown else ""
        print(f"NOT CHECKED: the vulnerability database does not know {len(unknown)} of {len(asked)} packages{first}")
        return 1 if holes else 2
    print(f"{len(asked)} packages, {len(holes)} known vulnerabilities")
    return int(bool(holes))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", metavar="FILE", type=Path)
    what.add_argument("--licences", action="store_true")
    what.add_argument("--check", action="store_true")
    what.add_argument("--audit", action="store_true")
    chosen = parser.parse_args()
    if chosen.audit:
        return audit()
    listed = packages()
    if chosen.output:
        chosen.output.write_text(bill(listed) + "\n")
    elif chosen.licences:
        print(licence_page(listed), end="")
    return check(listed) if chosen.check else 0


if __name__ == "__main__":
    sys.exit(main())
