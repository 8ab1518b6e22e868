"""What a Redfish twin answers besides resources: errors, the service document, the metadata document.

Owns their form (DSP0266: "Error responses", "OData service document", "OData metadata document"). Refuses to know
values and connections. Called by the twin.
"""

from typing import Any

import msgspec

from madang.facility.redfish.twin_tree import BASE, Document
from madang.facility.twin_http import TwinAnswer

_SCHEMAS = "http://redfish.dmtf.org/schemas/v1"
_ODATA_HEADERS = {"OData-Version": "4.0", "Cache-Control": "no-cache"}
_EDMX = "http://docs.oasis-open.org/odata/ns/edmx"
_EDM = "http://docs.oasis-open.org/odata/ns/edm"


def json_answer(document: Any, status: int = 200, **headers: str) -> TwinAnswer:
    """Return a JSON answer; underscores in names of headers stand for hyphens."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return TwinAnswer(status, msgspec.json.encode(document), {**_ODATA_HEADERS, **kind, **told})


def empty_answer(status: int = 204) -> TwinAnswer:
    """Return an answer without a body."""
    return TwinAnswer(status, b"", dict(_ODATA_HEADERS))


def error_answer(status: int, message_id: str, message: str, *arguments: str, **headers: str) -> TwinAnswer:
    """Return an error object with one message of DMTF's Base registry."""
    detail = {
        "@odata.type": "#Message.v1_1_2.Message",
        "MessageId": f"Base.1.18.{message_id}",
        "Message": message,
        "MessageArgs": list(arguments),
        "MessageSeverity": "Warning",
        "Resolution": "Correct the request and submit it again.",
    }
    error = {"code": "Base.1.18.GeneralError", "message": message, "@Message.ExtendedInfo": [detail]}
    return json_answer({"error": error}, status, **headers)


def versions() -> TwinAnswer:
    """Return which versions of the protocol there are."""
    return json_answer({"v1": f"{BASE}/"})


def service_document(documents: dict[str, Document]) -> TwinAnswer:
    """Return the OData service document: the service root's links."""
    root = documents[BASE]
    links = {name: one["@odata.id"] for name, one in root.items() if isinstance(one, dict) and "@odata.id" in one}
    entries = [{"name": name, "kind": "Singleton", "url": url} for name, url in links.items()]
    entries.insert(0, {"name": "Service", "kind": "Singleton", "url": f"{BASE}/"})
    return json_answer({"@odata.context": f"{BASE}/$metadata", "value": entries})


def metadata_document(documents: dict[str, Document]) -> TwinAnswer:
    """Return the OData metadata document: which schemas the resources are of."""
    kinds: dict[str, set[str]] = {"Session": {"Session.v1_7_2"}, "Message": {"Message.v1_1_2"}}
    for document in documents.values():
        namespace = document["@odata.type"].removeprefix("#").rpartition(".")[0]
        kinds.setdefault(namespace.partition(".")[0], set()).add(namespace)
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<edmx:Edmx xmlns:edmx="{_EDMX}" Version="4.0">']
    for kind, namespaces in sorted(kinds.items()):
        lines.append(f'  <edmx:Reference Uri="{_SCHEMAS}/{kind}_v1.xml">')
        lines += [f'    <edmx:Include Namespace="{one}"/>' for one in sorted({kind} | namespaces)]
        lines.append("  </edmx:Reference>")
    lines.append(f'  <edmx:Reference Uri="{_SCHEMAS}/RedfishExtensions_v1.xml">')
    lines.append('    <edmx:Include Namespace="RedfishExtensions.v1_0_0" Alias="Redfish"/>')
    lines += ["  </edmx:Reference>", "  <edmx:DataServices>", f'    <Schema xmlns="{_EDM}" Namespace="Service">']
    root = documents[BASE]["@odata.type"].removeprefix("#").rpartition(".")[0]
    lines.append(f'      <EntityContainer Name="Service" Extends="{root}.ServiceContainer"/>')
    lines += ["    </Schema>", "  </edmx:DataServices>", "</edmx:Edmx>", ""]
    headers = {**_ODATA_HEADERS, "Content-Type": "application/xml"}
    return TwinAnswer(200, "\n".join(lines).encode(), headers)
