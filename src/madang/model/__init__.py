"""Frozen facts: what a site, chip, artifact, service, tenant, replica and usage event are.

Owns their shapes and the metrics computed from them (TTFT, TPOT, goodput). Refuses to know storage, wire and
processes. Everybody above imports the names re-exported here.
"""

from madang.model.alarm import (
    Alarm,
    AlarmKey,
    AlarmPriority,
    AlarmRole,
    AlarmRule,
    AlarmState,
    Condition,
    JournalEntry,
)
from madang.model.artifact import (
    UNITS_OF_TASK,
    Artifact,
    ArtifactFile,
    CatalogEntry,
    HttpSource,
    IndexWheelsSource,
    PackageSource,
    RecipeSource,
    Source,
    SystemFileSource,
    Task,
    Unit,
    WheelPart,
)
from madang.model.artifact_key import ArtifactKey, keys_of
from madang.model.chip import Chip, ChipHealth
from madang.model.chip_lease import LEFT_BY_REPLICAS, ChipCordon, ChipLease, ChipLeaseState, CordonCause
from madang.model.envelope import (
    Action,
    ActionState,
    Envelope,
    Fact,
    NodeEnvelope,
    NodeState,
    RackEnvelope,
    Request,
    SafetyState,
    Verb,
)
from madang.model.facility import (
    UNITS,
    Edge,
    EdgeKind,
    Equipment,
    EquipmentKind,
    Point,
    PointKind,
    Quality,
    Quantity,
    Ratings,
    Sample,
    SiteModel,
)
from madang.model.price import MICRO_WON_PER_WON, VAT_PERMILLE, Tariff
from madang.model.priority import PriorityClass
from madang.model.replica import EngineFeature, ReplicaObserved, ReplicaPhase, ReplicaSpec
from madang.model.service import Assignment, Service
from madang.model.site import Site
from madang.model.slo import tpot_s, ttft_s
from madang.model.tenant import ApiKey, Budget, DataClass, KeyPolicy, Project, Residency, ResidencyScope, Tenant
from madang.model.transfer import FileTransfer, TransferState
from madang.model.usage import Outcome, UsageEvent

__all__ = [
    "LEFT_BY_REPLICAS",
    "MICRO_WON_PER_WON",
    "UNITS",
    "UNITS_OF_TASK",
    "VAT_PERMILLE",
    "Action",
    "ActionState",
    "Alarm",
    "AlarmKey",
    "AlarmPriority",
    "AlarmRole",
    "AlarmRule",
    "AlarmState",
    "ApiKey",
    "Artifact",
    "ArtifactFile",
    "ArtifactKey",
    "Assignment",
    "Budget",
    "CatalogEntry",
    "Chip",
    "ChipCordon",
    "ChipHealth",
    "ChipLease",
    "ChipLeaseState",
    "Condition",
    "CordonCause",
    "DataClass",
    "Edge",
    "EdgeKind",
    "EngineFeature",
    "Envelope",
    "Equipment",
    "EquipmentKind",
    "Fact",
    "FileTransfer",
    "HttpSource",
    "IndexWheelsSource",
    "JournalEntry",
    "KeyPolicy",
    "NodeEnvelope",
    "NodeState",
    "Outcome",
    "PackageSource",
    "Point",
    "PointKind",
    "PriorityClass",
    "Project",
    "Quality",
    "Quantity",
    "RackEnvelope",
    "Ratings",
    "RecipeSource",
    "ReplicaObserved",
    "ReplicaPhase",
    "ReplicaSpec",
    "Request",
    "Residency",
    "ResidencyScope",
    "SafetyState",
    "Sample",
    "Service",
    "Site",
    "SiteModel",
    "Source",
    "SystemFileSource",
    "Tariff",
    "Task",
    "Tenant",
    "TransferState",
    "Unit",
    "UsageEvent",
    "Verb",
    "WheelPart",
    "keys_of",
    "tpot_s",
    "ttft_s",
]
