"""The trees that a Redfish twin serves: a server's BMC, a rack PDU, a coolant distribution unit.

Owns their resources, links and fixed properties, in the schemas that DMTF publishes. Refuses to know values: the twin
puts them where the profile's refs and the mirrors below say. Called by the twin.
"""

from typing import Any

import msgspec

BASE = "/redfish/v1"
OUTLETS = 24
DRIVES = 4
PHASES = 3
MAKER = "Madang (simulated)"

Document = dict[str, Any]
Mirror = tuple[str, tuple[str, ...]]
"""Path and pointer."""
_OK = {"State": "Enabled", "Health": "OK"}
_READING = {"Reading": None}


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """Resources by their paths, and other places where a point's value is shown too.

    Attributes:
        mirrors: by the profile's name of a point: paths and pointers.
    """

    documents: dict[str, Document]
    mirrors: dict[str, tuple[Mirror, ...]] = {}


def make_tree(kind: str, uuid: str) -> Tree:
    """Return the tree of one kind of device: bmc, rack_pdu or cdu; KeyError for another."""
    return {"bmc": _bmc, "rack_pdu": _rack_pdu, "cdu": _cdu}[kind](uuid)


def resource(path: str, schema: str, name: str, **members: Any) -> Document:
    """Return a resource with what every resource has."""
    kind = schema.partition(".")[0]
    identity = {"@odata.id": path, "@odata.type": f"#{schema}.{kind}"}
    return {**identity, "Id": path.rpartition("/")[2], "Name": name, **members}


def collection(path: str, kind: str, name: str, members: list[str]) -> Document:
    """Return a collection of links."""
    links = [link(f"{path}/{member}") for member in members]
    head = {"@odata.id": path, "@odata.type": f"#{kind}Collection.{kind}Collection", "Name": name}
    return {**head, "Members@odata.count": len(links), "Members": links}


def link(path: str) -> dict[str, str]:
    """Return a link to a resource."""
    return {"@odata.id": path}


def _by_path(*documents: Document) -> dict[str, Document]:
    return {one["@odata.id"].rstrip("/"): one for one in documents}


def _service(uuid: str, **members: Any) -> dict[str, Document]:
    """Return service root, sessions and the manager that every tree has."""
    sessions, managers = f"{BASE}/SessionService/Sessions", f"{BASE}/Managers"
    features = {"ExcerptQuery": False, "FilterQuery": False, "OnlyMemberQuery": False, "SelectQuery": False}
    root = resource(
        f"{BASE}/",
        "ServiceRoot.v1_17_0",
        "Root Service",
        RedfishVersion="1.20.0",
        UUID=uuid,
        Vendor=MAKER,
        ProtocolFeaturesSupported={**features, "ExpandQuery": {"ExpandAll": False, "Levels": False, "Links": False}},
        Managers=link(managers),
        SessionService=link(f"{BASE}/SessionService"),
        Links={"Sessions": link(sessions)},
        **members,
    )
    root["Id"] = "RootService"
    service = resource(
        f"{BASE}/SessionService",
        "SessionService.v1_1_9",
        "Session Service",
        Status=_OK,
        ServiceEnabled=True,
        SessionTimeout=1800,
        Sessions=link(sessions),
    )
    manager = resource(
        f"{managers}/bmc",
        "Manager.v1_19_2",
        "Manager",
        ManagerType="BMC" if "Systems" in members else "ManagementController",
        Manufacturer=MAKER,
        FirmwareVersion="twin",
        ServiceEntryPointUUID=uuid,
        PowerState="On",
        Status=_OK,
    )
    return _by_path(root, service, collection(managers, "Manager", "Managers", ["bmc"]), manager)


def _sensor(chassis: str, name: str, kind: str, unit: str, context: str) -> Document:
    return resource(
        f"{chassis}/Sensors/{name}",
        "Sensor.v1_10_0",
        f"{name} sensor",
        ReadingType=kind,
        ReadingUnits=unit,
        PhysicalContext=context,
        Implementation="PhysicalSensor" if kind == "Temperature" else "Synthesized",
        Status=_OK,
        Reading=None,
    )


def _excerpt(sensor: Document) -> Document:
    return {"Reading": None, "DataSourceUri": sensor["@odata.id"]}


def _leaks(path: str) -> dict[str, Document]:
    detectors = f"{path}/LeakDetectors"
    detection = resource(
        path,
        "LeakDetection.v1_1_0",
        "Leak Detection",
        Status=dict(_OK),
        LeakDetectors=link(detectors),
    )
    detector = resource(
        f"{detectors}/1",
        "LeakDetector.v1_2_0",
        "Leak detector rope",
        LeakDetectorType="Moisture",
        Manufacturer=MAKER,
        DetectorState=None,
        Status=dict(_OK),
    )
    return _by_path(detection, collection(detectors, "LeakDetector", "Leak Detectors", ["1"]), detector)


def _leak_mirrors(path: str) -> tuple[Mirror, ...]:
    detector = f"{path}/LeakDetectors/1"
    return (detector, ("DetectorState",)), (detector, ("Status", "Health"))


def _bmc(uuid: str) -> Tree:
    system, chassis = f"{BASE}/Systems/1", f"{BASE}/Chassis/1"
    sensors = {
        "power": _sensor(chassis, "TotalPower", "Power", "W", "Chassis"),
        "energy": _sensor(chassis, "TotalEnergy", "EnergykWh", "kW.h", "Chassis"),
        "temperature_inlet": _sensor(chassis, "Intake", "Temperature", "Cel", "Intake"),
        "temperature_outlet": _sensor(chassis, "Exhaust", "Temperature", "Cel", "Exhaust"),
        "speed_fan": _sensor(chassis, "Fan1", "Percent", "%", "Fan"),
    }
    leaks = f"{chassis}/ThermalSubsystem/LeakDetection"
    documents = {
        **_service(uuid, Systems=link(f"{BASE}/Systems"), Chassis=link(f"{BASE}/Chassis")),
        **_by_path(
            collection(f"{BASE}/Systems", "ComputerSystem", "Computer Systems", ["1"]),
            _system(system, chassis, uuid),
            collection(f"{BASE}/Chassis", "Chassis", "Chassis", ["1"]),
            _chassis(chassis, system),
            _bmc_environment(chassis, sensors),
            *_power_subsystem(chassis),
            *_thermal_subsystem(chassis, sensors),
            collection(f"{chassis}/Sensors", "Sensor", "Sensors", [one["Id"] for one in sensors.values()]),
            *sensors.values(),
        ),
        **_leaks(leaks),
        **_storage(system, chassis),
    }
    mirrors: dict[str, tuple[Mirror, ...]] = {
        name: ((one["@odata.id"], ("Reading",)),) for name, one in sensors.items()
    }
    mirrors["speed_fan"] += ((f"{chassis}/ThermalSubsystem/Fans/1", ("SpeedPercent", "Reading")),)
    mirrors["state_power"] = ((chassis, ("PowerState",)),)
    return Tree(documents=documents, mirrors=mirrors | {"alarm_leak": _leak_mirrors(leaks)})


def _system(path: str, chassis: str, uuid: str) -> Document:
    reset = {
        "target": f"{path}/Actions/ComputerSystem.Reset",
        "ResetType@Redfish.AllowableValues": ["On", "GracefulShutdown", "ForceOff"],
    }
    return resource(
        path,
        "ComputerSystem.v1_23_0",
        "Server",
        SystemType="Physical",
        Manufacturer=MAKER,
        Model="server",
        UUID=uuid,
        PowerState=None,
        Status={**_OK, "HealthRollup": None},
        Storage=link(f"{path}/Storage"),
        Links={"Chassis": [link(chassis)], "ManagedBy": [link(f"{BASE}/Managers/bmc")]},
        Actions={"#ComputerSystem.Reset": reset},
    )


def _chassis(path: str, system: str) -> Document:
    return resource(
        path,
        "Chassis.v1_25_2",
        "Chassis of the server",
        ChassisType="RackMount",
        Manufacturer=MAKER,
        PowerState=None,
        Status=_OK,
        PhysicalSecurity={"IntrusionSensor": None},
        EnvironmentMetrics=link(f"{path}/EnvironmentMetrics"),
        PowerSubsystem=link(f"{path}/PowerSubsystem"),
        ThermalSubsystem=link(f"{path}/ThermalSubsystem"),
        Sensors=link(f"{path}/Sensors"),
        Drives=link(f"{path}/Drives"),
        Links={"ComputerSystems": [link(system)], "ManagedBy": [link(f"{BASE}/Managers/bmc")]},
    )


def _bmc_environment(chassis: str, sensors: dict[str, Document]) -> Document:
    limit = {"SetPoint": None, "AllowableMin": None, "AllowableMax": None, "ControlMode": None}
    return resource(
        f"{chassis}/EnvironmentMetrics",
        "EnvironmentMetrics.v1_3_2",
        "Environment Metrics",
        PowerWatts=_excerpt(sensors["power"]),
        EnergykWh=_excerpt(sensors["energy"]),
        PowerLimitWatts=limit,
        FanSpeedsPercent=[{**_excerpt(sensors["speed_fan"]), "DeviceName": "Fan 1"}],
    )


def _power_subsystem(chassis: str) -> list[Document]:
    path = f"{chassis}/PowerSubsystem"
    supplies = [
        resource(
            f"{path}/PowerSupplies/{number}",
            "PowerSupply.v1_6_0",
            f"Power supply {number}",
            PowerSupplyType="AC",
            PowerCapacityWatts=2400,
            Status=_OK,
        )
        for number in (1, 2)
    ]
    redundancy = {
        "RedundancyType": "NPlusM",
        "MinNeededInGroup": 1,
        "MaxSupportedInGroup": 2,
        "RedundancyGroup": [link(one["@odata.id"]) for one in supplies],
        "Status": _OK,
    }
    subsystem = resource(
        path,
        "PowerSubsystem.v1_1_3",
        "Power Subsystem",
        CapacityWatts=4800,
        PowerSupplies=link(f"{path}/PowerSupplies"),
        PowerSupplyRedundancy=[redundancy],
        Status={"State": "Enabled", "Health": None},
    )
    return [subsystem, collection(f"{path}/PowerSupplies", "PowerSupply", "Power Supplies", ["1", "2"]), *supplies]


def _thermal_subsystem(chassis: str, sensors: dict[str, Document]) -> list[Document]:
    path = f"{chassis}/ThermalSubsystem"
    subsystem = resource(
        path,
        "ThermalSubsystem.v1_3_3",
        "Thermal Subsystem",
        Fans=link(f"{path}/Fans"),
        ThermalMetrics=link(f"{path}/ThermalMetrics"),
        LeakDetection=link(f"{path}/LeakDetection"),
        Status={"State": "Enabled", "Health": None},
    )
    inlet, outlet = sensors["temperature_inlet"], sensors["temperature_outlet"]
    metrics = resource(
        f"{path}/ThermalMetrics",
        "ThermalMetrics.v1_3_2",
        "Thermal Metrics",
        TemperatureSummaryCelsius={"Intake": _excerpt(inlet), "Exhaust": _excerpt(outlet)},
    )
    fan = resource(
        f"{path}/Fans/1",
        "Fan.v1_5_2",
        "Fan 1",
        PhysicalContext="Chassis",
        SpeedPercent=_excerpt(sensors["speed_fan"]),
        Status=_OK,
    )
    return [subsystem, metrics, collection(f"{path}/Fans", "Fan", "Fans", ["1"]), fan]


def _storage(system: str, chassis: str) -> dict[str, Document]:
    """Return the drives: they belong to the storage, and stand in the chassis."""
    path, bays = f"{system}/Storage", f"{chassis}/Drives"
    drives = [
        resource(
            f"{bays}/{number}",
            "Drive.v1_20_1",
            f"NVMe {number}",
            MediaType="SSD",
            Protocol="NVMe",
            Manufacturer=MAKER,
            CapacityBytes=3_840_755_982_336,
            PredictedMediaLifeLeftPercent=None,
            FailurePredicted=False,
            Status={"State": "Enabled", "Health": None},
        )
        for number in range(DRIVES)
    ]
    storage = resource(
        f"{path}/1",
        "Storage.v1_17_1",
        "NVMe drives",
        Drives=[link(one["@odata.id"]) for one in drives],
        **{"Drives@odata.count": len(drives)},
        Status=_OK,
    )
    in_chassis = collection(bays, "Drive", "Drives", [one["Id"] for one in drives])
    return _by_path(collection(path, "Storage", "Storage", ["1"]), storage, in_chassis, *drives)


def _rack_pdu(uuid: str) -> Tree:
    equipment, units = f"{BASE}/PowerEquipment", f"{BASE}/PowerEquipment/RackPDUs"
    pdu = f"{units}/1"
    parts = ("Mains", "Branches", "Outlets", "Metrics")
    documents = {
        **_service(uuid, PowerEquipment=link(equipment)),
        **_by_path(
            resource(equipment, "PowerEquipment.v1_2_2", "Power Equipment", RackPDUs=link(units), Status=_OK),
            collection(units, "PowerDistribution", "Rack PDUs", ["1"]),
            resource(
                pdu,
                "PowerDistribution.v1_4_0",
                "Rack PDU",
                EquipmentType="RackPDU",
                Manufacturer=MAKER,
                Model="metered and switched, three-phase",
                FirmwareVersion="twin",
                Status={"State": "Enabled", "Health": None},
                **{part: link(f"{pdu}/{part}") for part in parts},
            ),
            _pdu_metrics(pdu),
            collection(f"{pdu}/Mains", "Circuit", "Mains", ["AC1"]),
            _mains(f"{pdu}/Mains/AC1"),
            collection(f"{pdu}/Branches", "Circuit", "Branches", ["A", "B", "C"]),
            *(_branch(pdu, number) for number in range(PHASES)),
            collection(f"{pdu}/Outlets", "Outlet", "Outlets", [str(one + 1) for one in range(OUTLETS)]),
            *(_outlet(pdu, number) for number in range(OUTLETS)),
        ),
    }
    return Tree(documents=documents)


def _pdu_metrics(pdu: str) -> Document:
    return resource(
        f"{pdu}/Metrics",
        "PowerDistributionMetrics.v1_3_2",
        "Metrics of the PDU",
        PowerWatts={"Reading": None, "ApparentVA": None, "PowerFactor": None},
        EnergykWh=dict(_READING),
        PowerLoadPercent=dict(_READING),
        TemperatureCelsius=dict(_READING),
        HumidityPercent=dict(_READING),
    )


def _mains(path: str) -> Document:
    phases = range(1, PHASES + 1)
    return resource(
        path,
        "Circuit.v1_8_1",
        "Mains input",
        CircuitType="Mains",
        PhaseWiringType="ThreePhase5Wire",
        NominalVoltage="AC400V",
        RatedCurrentAmps=32,
        BreakerState=None,
        FrequencyHz=dict(_READING),
        PolyPhaseVoltage={f"Line{phase}ToNeutral": dict(_READING) for phase in phases},
        PolyPhaseCurrentAmps={f"Line{phase}": dict(_READING) for phase in phases},
        Status=_OK,
    )


def _branch(pdu: str, number: int) -> Document:
    return resource(
        f"{pdu}/Branches/{'ABC'[number]}",
        "Circuit.v1_8_1",
        f"Branch {'ABC'[number]}",
        CircuitType="Branch",
        PhaseWiringType="OnePhase3Wire",
        NominalVoltage="AC230V",
        RatedCurrentAmps=16,
        BreakerState=None,
        Status=_OK,
    )


def _outlet(pdu: str, number: int) -> Document:
    path = f"{pdu}/Outlets/{number + 1}"
    control = {
        "target": f"{path}/Actions/Outlet.PowerControl",
        "PowerState@Redfish.AllowableValues": ["On", "Off"],
    }
    return resource(
        path,
        "Outlet.v1_4_4",
        f"Outlet {number + 1}",
        OutletType="IEC_60320_C13",
        VoltageType="AC",
        NominalVoltage="AC230V",
        RatedCurrentAmps=10,
        PhaseWiringType="OnePhase3Wire",
        PowerState=None,
        PowerWatts=dict(_READING),
        Links={"BranchCircuit": link(f"{pdu}/Branches/{'ABC'[number % PHASES]}")},
        Actions={"#Outlet.PowerControl": control},
        Status=_OK,
    )


def _cdu(uuid: str) -> Tree:
    equipment, units = f"{BASE}/ThermalEquipment", f"{BASE}/ThermalEquipment/CDUs"
    cdu = f"{units}/1"
    parts = ("PrimaryCoolantConnectors", "SecondaryCoolantConnectors", "Pumps", "Reservoirs", "LeakDetection")
    documents = {
        **_service(uuid, ThermalEquipment=link(equipment)),
        **_by_path(
            resource(equipment, "ThermalEquipment.v1_1_2", "Thermal Equipment", CDUs=link(units), Status=_OK),
            collection(units, "CoolingUnit", "CDUs", ["1"]),
            resource(
                cdu,
                "CoolingUnit.v1_2_0",
                "Coolant distribution unit",
                EquipmentType="CDU",
                Manufacturer=MAKER,
                CoolingCapacityWatts=60000,
                FirmwareVersion="twin",
                EnvironmentMetrics=link(f"{cdu}/EnvironmentMetrics"),
                Status={"State": "Enabled", "Health": None},
                **{part: link(f"{cdu}/{part}") for part in parts},
            ),
            resource(
                f"{cdu}/EnvironmentMetrics",
                "EnvironmentMetrics.v1_3_2",
                "Environment Metrics",
                PowerWatts=dict(_READING),
                HumidityPercent=dict(_READING),
                DewPointCelsius=dict(_READING),
            ),
            *_connectors(cdu),
            *_pumps(cdu),
        ),
        **_leaks(f"{cdu}/LeakDetection"),
    }
    return Tree(documents=documents, mirrors={"alarm_leak": _leak_mirrors(f"{cdu}/LeakDetection")})


def _connectors(cdu: str) -> list[Document]:
    readings = ("FlowLitersPerMinute", "SupplyTemperatureCelsius", "ReturnTemperatureCelsius", "DeltaPressurekPa")
    found = []
    for side, more in (("Primary", ("ValvePositionPercent",)), ("Secondary", ("HeatRemovedkW",))):
        path = f"{cdu}/{side}CoolantConnectors"
        members: Document = {name: dict(_READING) for name in (*readings, *more)}
        if side == "Secondary":
            control = {"SetPoint": None, "AllowableMin": 15, "AllowableMax": 45, "ControlMode": "Automatic"}
            members["SupplyTemperatureControlCelsius"] = control
        found += [
            collection(path, "CoolantConnector", f"{side} coolant connectors", ["1"]),
            resource(
                f"{path}/1",
                "CoolantConnector.v1_4_0",
                f"{side} coolant connector",
                CoolantConnectorType="Pair",
                Status=_OK,
                **members,
            ),
        ]
    return found


def _pumps(cdu: str) -> list[Document]:
    pumps = [
        resource(
            f"{cdu}/Pumps/{number}",
            "Pump.v1_2_0",
            f"Pump {number}",
            PumpType="Liquid",
            PumpSpeedPercent=dict(_READING),
            Status={"State": "Enabled", "Health": None},
        )
        for number in (1, 2)
    ]
    reservoir = resource(
        f"{cdu}/Reservoirs/1",
        "Reservoir.v1_0_2",
        "Reservoir",
        ReservoirType="Reserve",
        CapacityLiters=20,
        FluidLevelPercent=dict(_READING),
        Status=_OK,
    )
    return [
        collection(f"{cdu}/Pumps", "Pump", "Pumps", ["1", "2"]),
        *pumps,
        collection(f"{cdu}/Reservoirs", "Reservoir", "Reservoirs", ["1"]),
        reservoir,
    ]
