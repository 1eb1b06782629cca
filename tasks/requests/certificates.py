"""Certificates on disk: written as JSON and as a page, read back, and verified."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.certificates.seal import DIGEST, SIGNATURE, chain_faults
from efface.certificates.signature import create_key, public_key_of, signature_fault, signed
from efface.errors import ArtifactError
from efface.subject_hashes import subject_hashes
from tasks.requests.intake import FOLDER, RequestError
from tasks.requests.state import PRODUCTION, RequestState, read_states, state_path
from tasks.runtime.artifacts import digest, write_json, writing
from tasks.runtime.purged import PURGED
from tasks.runtime.results import project_of
from tasks.runtime.salt import SALT, SALT_VARIABLE, SaltError, read_salt
from tasks.tracking.client import TrackingError, tracking_uri
from tasks.tracking.registry import POINTER, Registry

KIND = "efface.forget_certificate"
RECORD_KIND = "efface.purge_record"
KEY = Path(".efface") / "certificates.key"
KEY_VARIABLE = "EFFACE_CERTIFICATES_KEY"
"""Variable with the path of the private key in PEM, instead of `KEY`."""
PUBLIC_KEYS = "public_keys.txt"
TIMESTAMP_ROOTS = "timestamp_roots.pem"
"""Trusted root certificates of the server of time stamps; like the public keys beside the certificates."""
_PARTS = {
    "number": int,
    "request": dict,
    DIGEST: str,
    SIGNATURE: dict,
}
_OWN_PARTS = {
    KIND: {"files": dict, "run": str, "models": dict},
    RECORD_KIND: {"certificate": str, "purge": dict},
}
"""By kind; the records of purges are links of the same chain."""


def certificate_folder(root: Path) -> Path:
    """Where certificates are."""
    return root / FOLDER / "certificates"


def read_certificates(root: Path) -> list[dict[str, Any]]:
    """All certificates and purge records in the order of their numbers.

    Raises:
        ArtifactError: if one cannot be read.
    """
    certificates = []
    for path in sorted(certificate_folder(root).glob("*.json")):
        try:
            text = path.read_text(encoding="utf-8")
            certificate = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite)
            if not isinstance(certificate, dict) or certificate.get("kind") not in _OWN_PARTS:
                raise ValueError(f"kind is none of {', '.join(_OWN_PARTS)}")
            parts = _PARTS | _OWN_PARTS[certificate["kind"]]
            wrong = [key for key, kind in parts.items() if type(certificate.get(key)) is not kind]
            if wrong or "id" not in certificate["request"] or "previous" not in certificate:
                raise ValueError(f"parts are missing: {', '.join(wrong) or 'request.id or previous'}")
        except (ValueError, RecursionError, OSError) as error:
            raise ArtifactError(
                f"{path} was changed and is not a certificate ({error}); restore it with: git checkout {path}"
            ) from error
        certificates.append(certificate)
    return sorted(certificates, key=lambda certificate: int(certificate["number"]))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"duplicate key among {', '.join(sorted(values))}")
    return values


def _finite(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def public_keys(root: Path) -> list[str]:
    """The public keys that the repository lists as trusted, in hex."""
    path = certificate_folder(root) / PUBLIC_KEYS
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def signing_key(root: Path) -> bytes:
    """The private key in PEM; as long as no public key is listed, it is created if necessary, and listed.

    Raises:
        ArtifactError: if it cannot be read, others may read it, or the repository does not list it.
    """
    variable, trusted = os.environ.get(KEY_VARIABLE), public_keys(root)
    path = Path(variable or project_of(root) / KEY)
    if not (path.exists() or variable or trusted):
        with writing(path) as partial:
            partial.touch(mode=0o600)
            partial.write_bytes(create_key())
    try:
        key, mode = path.read_bytes(), path.stat().st_mode & 0o777
        public_key = public_key_of(key)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not an Ed25519 key in PEM ({error}); restore it, or set {KEY_VARIABLE} to the "
            "path of one"
        ) from error
    if mode & 0o077:
        raise ArtifactError(
            f"{path}, the key that signs certificates, has mode {mode:o}, expected 600: whoever read it can "
            f"forge certificates; chmod 600 {path}"
        )
    listing = certificate_folder(root) / PUBLIC_KEYS
    if not trusted:
        with writing(listing) as partial:
            partial.write_text(f"{public_key}\n", encoding="utf-8")
    elif public_key not in trusted:
        raise ArtifactError(
            f"{path} is not the key of the certificates before: restore that one, or append to {listing} the "
            f"public key of this one: {public_key}"
        )
    return key


def sign(root: Path, certificate: Mapping[str, Any]) -> dict[str, Any]:
    """The certificate with its signature.

    Raises:
        ArtifactError: as `signing_key`.
    """
    return signed(certificate, signing_key(root))


def certificate_of(root: Path, request: str) -> dict[str, Any]:
    """The newest certificate of a request.

    Raises:
        RequestError: if it has none.
    """
    certificates = [
        item for item in read_certificates(root) if item["request"]["id"] == request and item["kind"] == KIND
    ]
    if not certificates:
        raise RequestError(
            f"request {request} has no certificate; it gets one when a model that forgot its subjects passes "
            "the gates"
        )
    return certificates[-1]


def certificate_path(root: Path, certificate: Mapping[str, Any]) -> Path:
    """Its JSON file; the page has the same name with .html."""
    return certificate_folder(root) / f"{certificate['number']:04}-{certificate['request']['id']}.json"


def stamp_path(root: Path, certificate: Mapping[str, Any]) -> Path:
    """Its RFC 3161 time stamp, which may not exist."""
    return certificate_path(root, certificate).with_suffix(".tsr")


def write_certificate(root: Path, certificate: Mapping[str, Any]) -> None:
    """Write both files of a certificate, the JSON last."""
    write_page(root, certificate)
    write_json(certificate_path(root, certificate), certificate)


def write_page(root: Path, certificate: Mapping[str, Any], *, stamped: bool = False) -> Path:
    """Write a certificate's page, which names its stamp if it has one, or is to get one."""
    page = certificate_path(root, certificate).with_suffix(".html")
    with writing(page) as partial:
        partial.write_text(_page_of(root, certificate, stamped=stamped), encoding="utf-8")
    return page


def _page_of(root: Path, certificate: Mapping[str, Any], *, stamped: bool = False) -> str:
    from efface.certificates.render import render_certificate, render_purge_record

    stamp = stamp_path(root, certificate)
    render = render_certificate if certificate["kind"] == KIND else render_purge_record
    return render(certificate, stamp=stamp.name if stamped or stamp.is_file() else None)


@dataclass
class Verification:
    """The result of verifying all certificates."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not checked, with the reason, and what limits a certificate."""
    certificates: int = 0
    digests: int = 0
    """Number of digests computed and compared."""
    stamps: int = 0
    """Number of time stamps checked."""


def verify(root: Path, registry: Registry, *, public_key: str | None = None) -> Verification:
    """Recompute every digest of every certificate, and the chain, without changing anything.

    Checks the certificate's own digest, signature and time stamp, its link to the previous one, its page, the
    hashes of the subjects, its request's state, the files that it names, and the production model in MLflow.

    Args:
        root: the data folder.
        registry: the registered model.
        public_key: the only key to trust, in hex; None: those that the repository lists.
    """
    result = Verification()
    try:
        certificates, states = read_certificates(root), read_states(root)
        salt = read_salt(project_of(root))
    except (ArtifactError, SaltError) as error:
        result.faults.append(str(error))
        return result
    result.certificates = len(certificates)
    result.faults += chain_faults(certificates)
    trusted = public_keys(root) if public_key is None else [public_key.lower()]
    digests: dict[Path, str | None] = {}
    newest = {item["request"]["id"]: item for item in certificates if item["kind"] == KIND}
    purges = {item["request"]["id"]: item for item in certificates if item["kind"] == RECORD_KIND}
    purged = {value for item in purges.values() for value in item["request"]["subjects"]}
    deleted = [Path(path) for item in purges.values() for path in item["purge"]["deleted"]["project"]]
    for certificate in certificates:
        name = certificate["request"]["id"]
        try:
            if fault := signature_fault(certificate, trusted):
                result.faults.append(fault)
            _check_page(root, certificate, result)
            _check_stamp(root, certificate, result)
            if certificate["kind"] == RECORD_KIND:
                _check_purged(root, certificate, states.get(name), result)
                continue
            _check_files(root, certificate, result, digests, deleted)
            if newest[name] is certificate:
                is_purged = {*certificate["request"]["subjects"]} <= purged
                _check_state(root, certificate, states.get(name), salt, result, purged=is_purged)
            if files := certificate["made"].get("uncommitted"):
                result.notes.append(
                    f"certificate {name}: {len(files)} files such as {files[0]} had changes that its commit, "
                    f"{certificate['made']['git_commit']}, does not hold"
                )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            result.faults.append(
                f"certificate {name}: a part is missing or was changed ({type(error).__name__}: {error}); "
                f"restore it with: git checkout {certificate_path(root, certificate)}"
            )
    present = {certificate[DIGEST] for certificate in certificates}
    for request, state in states.items():
        for value in (state.certificate, state.purge_record):
            if value is not None and value not in present:
                result.faults.append(
                    f"request {request}: its certificate or record {value[:12]} is missing or was changed; "
                    f"restore it with: git checkout {certificate_folder(root)}"
                )
    if certificates and salt is None:
        result.notes.append(
            f"the hashes of subjects were not checked: neither {SALT} nor {SALT_VARIABLE} holds the salt"
        )
    if certificates:
        _check_registry(registry, certificates, result)
    return result


def _check_page(root: Path, certificate: Mapping[str, Any], result: Verification) -> None:
    page, name = certificate_path(root, certificate).with_suffix(".html"), certificate["request"]["id"]
    if not page.is_file() or page.read_bytes() != _page_of(root, certificate).encode():
        result.faults.append(
            f"certificate {name}: {page} is {'changed' if page.is_file() else 'missing'}; rewrite it "
            f"with: python -m flows.requests certificate {name}"
        )


def _check_stamp(root: Path, certificate: Mapping[str, Any], result: Verification) -> None:
    path, roots = stamp_path(root, certificate), certificate_folder(root) / TIMESTAMP_ROOTS
    if not path.is_file():
        if roots.is_file():
            result.notes.append(
                f"certificate {certificate['request']['id']} has no time stamp, {path}; add it with: "
                "python -m flows.requests stamp"
            )
        return
    try:
        from efface.certificates.timestamp import stamp_time

        stamp_time(path.read_bytes(), certificate[DIGEST], roots.read_bytes())
    except ImportError:
        result.notes.append(f"{path} was not checked: pip install -c constraints.txt -e '.[timestamps]'")
    except (OSError, ValueError) as error:
        result.faults.append(
            f"certificate {certificate['request']['id']}: {path} is no valid time stamp of it ({error}); "
            f"restore it and {roots.name} with: git checkout {path.parent}"
        )
    else:
        result.stamps += 1


def _check_files(
    root: Path,
    certificate: Mapping[str, Any],
    result: Verification,
    digests: dict[Path, str | None],
    deleted: Collection[Path],
) -> None:
    name, models = certificate["request"]["id"], certificate["models"]
    for role, file in certificate["files"].items():
        path = project_of(root) / file["path"]
        if path not in digests:
            digests[path] = digest(path) if path.exists() else None
        if any(Path(file["path"]).is_relative_to(place) for place in deleted):
            if digests[path] is not None:
                result.faults.append(
                    f"certificate {name}: {role} is at {file['path']} again, and a purge record says that it "
                    "was deleted; delete it"
                )
            continue
        result.digests += 1
        if digests[path] == file["digest"]:
            continue
        remedy = f"in {certificate['run']}: dvc checkout --force"
        if role == "request":
            remedy = f"git checkout {file['path']}"
        elif role == "model before":  # linked into the run's folder, where DVC does not track it
            uri = f"models:/{models['registered_name']}/{models['before']['version']}"
            remedy = f"rm -rf {file['path']}; mlflow artifacts download -u {uri} -d {file['path']}"
            if "MLFLOW_TRACKING_URI" not in os.environ:
                remedy = f"export MLFLOW_TRACKING_URI={tracking_uri(project_of(root))}; {remedy}"
        status = "missing" if digests[path] is None else f"changed (digest {str(digests[path])[:12]})"
        result.faults.append(
            f"certificate {name}: {role} is {status} at {file['path']}, expected digest "
            f"{file['digest'][:12]}; restore it with: {remedy}"
        )


def _check_state(
    root: Path,
    certificate: Mapping[str, Any],
    state: RequestState | None,
    salt: bytes | None,
    result: Verification,
    *,
    purged: bool,
) -> None:
    name, after = certificate["request"]["id"], certificate["models"]["after"]
    path = state_path(root, name)
    if state is None:
        result.faults.append(f"certificate {name}: {path} is missing; restore it with: git checkout {path}")
        return
    expected = {
        "registered_model": certificate["models"]["registered_name"],
        "version": after["version"],
        "model_digest": after["digest"],
        "certificate": certificate[DIGEST],
    }
    wrong = [key for key, value in expected.items() if getattr(state, key) != value]
    if salt is not None and not purged:
        result.digests += len(state.subjects)
        if subject_hashes(state.subjects, salt) != certificate["request"]["subjects"]:
            wrong.append("subjects (or the salt is another)")
    if wrong:
        result.faults.append(
            f"certificate {name}: {path} differs from it in {', '.join(wrong)}; restore both with git"
        )


def _check_purged(
    root: Path, record: Mapping[str, Any], state: RequestState | None, result: Verification
) -> None:
    """Check that the state and the list of purged people agree with the record."""
    name, path = record["request"]["id"], root / PURGED
    listed = path.read_text(encoding="utf-8").split() if path.is_file() else []
    if missing := [value for value in record["request"]["subjects"] if value not in listed]:
        result.faults.append(
            f"request {name}: {path} lacks {len(missing)} people whose data were purged; restore it with: "
            f"git checkout {path}"
        )
    state_values = state is not None and (state.status, state.subjects, state.purge_record)
    if state_values != ("purged", [], record[DIGEST]):
        result.faults.append(
            f"request {name}: its purge record and {state_path(root, name)} differ; restore both with git"
        )


def _check_registry(registry: Registry, certificates: list[dict[str, Any]], result: Verification) -> None:
    """Compare the certificates with the versions in MLflow, and the production model's files there."""
    try:
        versions, production = registry.versions(), registry.aliases().get(PRODUCTION)
        recorded = {v for c in certificates if c["kind"] == RECORD_KIND for v in c["purge"]["versions"]}
        for number, version in versions.items():
            if version.purged and f"{registry.name}/{number}" not in recorded:
                result.faults.append(
                    f"version {number} of {registry.name} is marked as purged, and no purge record names it; "
                    "restore the certificates with git"
                )
        for certificate in (item for item in certificates if item["kind"] == KIND):
            models = certificate["models"]
            after = versions.get(models["after"]["version"])
            if models["registered_name"] == registry.name and (
                after is None or after.digest != models["after"]["digest"]
            ):
                result.faults.append(
                    f"certificate {certificate['request']['id']}: version {models['after']['version']} of "
                    f"{registry.name} in MLflow {'is missing' if after is None else 'has other weights'}, "
                    f"expected digest {models['after']['digest'][:12]}; restore MLflow's database"
                )
        if production is None or production not in versions:
            result.notes.append(f"no version of {registry.name} is in production in MLflow")
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = registry.download(production, Path(folder) / "model")
            if (copy / POINTER).is_file():
                result.notes.append(
                    f"version {production} of {registry.name} is stored with DVC, not in MLflow"
                )
                return
            result.digests += 1
            if digest(copy) != versions[production].digest:
                result.faults.append(
                    f"version {production} of {registry.name}, in production, has changed files in MLflow, "
                    f"expected digest {versions[production].digest[:12]}; restore them from "
                    f"{versions[production].folder or 'a backup'}"
                )
    except (TrackingError, KeyError, TypeError, AttributeError) as error:
        result.notes.append(f"the models in MLflow were not checked: {error}")
